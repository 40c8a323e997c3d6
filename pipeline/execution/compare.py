"""Comparisons of settings: of inputs that are probed for it, or of the examples of a saved plan; nothing is decoded or kept."""

import shutil
import tempfile
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.errors import BuildFailed
from patchpack.pipeline.execution import folder as output
from patchpack.pipeline.execution.checks import check_listing
from patchpack.pipeline.execution.graph import probe_graph
from patchpack.pipeline.execution.launch import check_stores, read_inputs, with_backend
from patchpack.pipeline.execution.progress import bar, warn
from patchpack.pipeline.execution.resume import resumed
from patchpack.pipeline.execution.stage import planning, run_graph
from patchpack.pipeline.names import PLAN_FOLDER, PLAN_NAME
from patchpack.pipeline.stages import saved
from patchpack.pipeline.stages.records import Reject
from patchpack.pipeline.storage import files
from patchpack.pipeline.whatif import examples, rows
from patchpack.pipeline.whatif.settings import Setting, check_examples, parse_setting
from patchpack.schemas.whatif import WhatIf


def compare(inputs: list[str], texts: Sequence[str], base: PlanConfig, options: PipelineOptions | None) -> WhatIf:
    """Probes inputs once, decodes nothing, and returns what a build would give under each setting, the base first.

    Raises:
        ValueError: a setting or the inputs cannot be used so.
        BuildFailed: probing failed, or every input was rejected.
    """
    if options is not None:
        raise ValueError(
            "--compare: its probing runs on this machine, and options after -- name another runner; plan --output saves a plan by that "
            "runner, which --from FOLDER --compare takes; leave them out"
        )
    config = with_backend(
        BuildConfig(**{name: getattr(base, name) for name in PlanConfig.__dataclass_fields__}), options
    )
    settings = _settings(texts, config)
    folder = tempfile.mkdtemp(prefix="patchpack-compare-")
    try:
        check_stores(folder, inputs, options)
        parsed = read_inputs(inputs, folder, config)
        files.make_folder(files.join(folder, PLAN_FOLDER))
        with output.shuffling(folder, is_local=True) as shuffle:
            run_graph(
                folder,
                lambda pipeline: probe_graph(pipeline, parsed, folder, config, shuffle),
                config,
                lambda counts: planning(counts, config),
            )
        found, rejects = examples.read_probed(folder), list(saved.read_rejects(folder, [0]))
        for warning in check_listing(saved.read_listing(folder, [0]), parsed, config):
            warn(warning)
        if not found.keys:
            first = min(rejects)
            raise BuildFailed(
                f"nothing to compare, all {len({row.key for row in rejects})} inputs were rejected (first: {first.key}: "
                f"{first.reason}, {first.detail}); at least one must be readable; check the inputs"
            )
        return _compared(found, rejects, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare_saved(folder: str, texts: Sequence[str]) -> WhatIf:
    """Returns the same of the examples of a saved plan, or of a finished dataset's; its own options are the base.

    Raises:
        ValueError: a setting cannot be used so, or there is no plan.
        FormatError: the plan was damaged.
    """
    home = output.plan_home(folder)
    if not files.exists(files.join(home, PLAN_NAME)):
        raise ValueError(
            f"--from {folder}: no {PLAN_NAME} in it; it takes what plan --output saved, or a dataset of build; check the path"
        )
    settings = _settings(texts, resumed({}, folder))
    return _compared(examples.read_planned(home), list(saved.read_rejects(home)), settings)


def _settings(texts: Sequence[str], base: PlanConfig) -> list[Setting]:
    settings = [Setting("", base), *(parse_setting(text, base) for text in texts)]
    for setting in settings[1:]:
        # what can be said before anything is probed
        check_examples(setting, base, clips=False, of_plan=False)
    return settings


def _compared(found: examples.Examples, rejects: list[Reject], settings: list[Setting]) -> WhatIf:
    clips = found.has_clips or any(reject.reason == "slow_source" for reject in rejects)
    for setting in settings[1:]:
        check_examples(setting, settings[0].config, clips=clips, of_plan=found.of_plan)
    with bar("comparing", len(found.keys) * len(settings), "examples") as advance:
        return rows.compare(found, rejects, settings, advance)
