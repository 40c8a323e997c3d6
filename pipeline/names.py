"""Every name in an output folder that the pipeline alone reads; those of the finished dataset are in `schemas.manifest`.

Names that begin with `_` are skipped by Spark, Hive and pyarrow datasets: what they find in an output are sequences.
"""

from patchpack.schemas.manifest import SEQUENCES_FOLDER

# added inputs would be another generation
GENERATION = 0

PLAN_FOLDER = "_plan"
# written last: a plan with it is complete
PLAN_NAME = f"{PLAN_FOLDER}/plan.json"
LISTING_NAME = f"{PLAN_FOLDER}/listing.json"
CLASSES_NAME = f"{PLAN_FOLDER}/classes.json"
RESULTS_NAME = f"{PLAN_FOLDER}/results.json"
# where --overwrite plans
NEXT_FOLDER = "_plan-next"

REPORT_NAME = "report.json"
REPORT_PAGE_NAME = "report.html"


def group_plan_name(group: int) -> str:
    """Returns the name of the planned rows of a group."""
    return f"{PLAN_FOLDER}/part-{GENERATION:03}-{group:05}.parquet"


def group_rejects_name(group: int) -> str:
    """Returns the name of the rejects of a group."""
    return f"{PLAN_FOLDER}/rejects-{GENERATION:03}-{group:05}.parquet"


def shard_name(group: int, index: int) -> str:
    """Returns the name of a shard, below the output."""
    return f"{SEQUENCES_FOLDER}/part-{GENERATION:03}-{group:05}-{index:05}.parquet"
