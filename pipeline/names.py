"""Every name in an output folder that the pipeline alone reads; those of the finished dataset are in `schemas.manifest`.

Names that begin with `_` are skipped by Spark, Hive and pyarrow datasets: what they find in an output are sequences.
"""

from patchpack.schemas.manifest import SEQUENCES_FOLDER

PLAN_FOLDER = "_plan"
# written last: a plan with it is complete
PLAN_NAME = f"{PLAN_FOLDER}/plan.json"
PROBED_PREFIX = f"{PLAN_FOLDER}/probed-"
# what crosses the shuffles of a build on this machine
SHUFFLE_FOLDER = f"{PLAN_FOLDER}/shuffle"
# what became of a build, where it is no dataset
OUTCOME_NAME = f"{PLAN_FOLDER}/outcome.json"
# what writing gave
RESULTS_FOLDER = "_results"
# where --overwrite plans
NEXT_FOLDER = "_plan-next"

REPORT_NAME = "report.json"
REPORT_PAGE_NAME = "report.html"


def probed_name(bucket: int) -> str:
    """Returns the name of what probing found in a bucket of inputs; it goes once the plan is whole."""
    return f"{PROBED_PREFIX}{bucket:05}.parquet"


def listing_name(generation: int) -> str:
    """Returns the name of what became of the inputs of a generation."""
    return f"{PLAN_FOLDER}/listing-{generation:03}.json"


def parts_name(generation: int) -> str:
    """Returns the name of the list of the groups of a generation, and of their views."""
    return f"{PLAN_FOLDER}/parts-{generation:03}.json"


def arranged_name(generation: int) -> str:
    """Returns the name of how the plan of a generation arranges examples."""
    return f"{PLAN_FOLDER}/arranged-{generation:03}.json"


def classes_name(generation: int) -> str:
    """Returns the name of the classes of a generation, those of the ones before among them."""
    return f"{PLAN_FOLDER}/classes-{generation:03}.json"


def view_plan_name(generation: int, group: int, view: int) -> str:
    """Returns the name of the planned rows of a view of a group."""
    return f"{PLAN_FOLDER}/part-{generation:03}-{group:05}-{view:03}.parquet"


def bucket_rejects_name(generation: int, bucket: int) -> str:
    """Returns the name of the rejects of a bucket of inputs."""
    return f"{PLAN_FOLDER}/rejects-{generation:03}-{bucket:05}.parquet"


def bucket_digests_name(generation: int, bucket: int) -> str:
    """Returns the name of the digests of a bucket of inputs, which later generations compare theirs with."""
    return f"{PLAN_FOLDER}/digests-{generation:03}-{bucket:05}.parquet"


def shard_result_name(generation: int, group: int, index: int) -> str:
    """Returns the name of what writing a shard gave."""
    return f"{RESULTS_FOLDER}/part-{generation:03}-{group:05}-{index:05}.json"


def group_result_name(generation: int, group: int) -> str:
    """Returns the name of what writing the shards of a group gave."""
    return f"{RESULTS_FOLDER}/group-{generation:03}-{group:05}.json"


def shard_name(generation: int, group: int, index: int) -> str:
    """Returns the name of a shard, below the output."""
    return f"{SEQUENCES_FOLDER}/part-{generation:03}-{group:05}-{index:05}.parquet"
