"""From settings and examples to the record of a comparison: a row for each setting and packer."""

from collections.abc import Callable
from functools import partial
from typing import cast

from patchpack.options import output_affecting
from patchpack.pipeline.packing.balance.balance import random_ratio
from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Reject
from patchpack.pipeline.whatif.cost import DECODED_PX_PER_S, MODEL, gpu_hours
from patchpack.pipeline.whatif.engine import Planned, Tally, pack_as, plan_examples
from patchpack.pipeline.whatif.examples import Examples
from patchpack.pipeline.whatif.settings import OURS, Setting
from patchpack.schemas.figures import Options
from patchpack.schemas.whatif import ComparedRow, WhatIf

# ranks that step together: a machine's, and a small cluster's
RANKS = (8, 64)


def compare(
    examples: Examples,
    rejects: list[Reject],
    settings: list[Setting],
    advance: Callable[[int], None] = lambda done: None,
    effort: float = 1.0,
) -> WhatIf:
    """Returns the record of a comparison.

    Args:
        examples: as probed once.
        rejects: of listing, probing and, in a saved plan, sampling.
        settings: the base first.
        advance: called with how many examples are done, over all settings.
        effort: of our packer.
    """
    rows: list[ComparedRow] = []
    for number, setting in enumerate(settings):
        before = number * len(examples.keys)
        planned = plan_examples(examples, setting.config, partial(_advance, advance, before), effort)
        for packer in setting.packers:
            if packer == OURS:
                rows.append(_row(number, setting, packer, planned, planned.ours))
            elif not planned.has_text:
                # theirs know one capacity
                tally = pack_as(packer, planned, setting.config)
                rows.append(_row(number, setting, packer, planned, tally))
    base_cost = rows[0]["attention_cost"]
    for row in rows:
        row["relative_attention_cost"] = row["attention_cost"] / base_cost if base_cost else None
    rejected = {row.key for row in rejects if row.stage != "sample" and (row.stage, row.reason) != PARTIAL_VIDEO}
    return {
        "num_inputs": len({*examples.keys, *(row.key for row in rejects)}),
        "num_rejected_inputs": len(rejected),
        "num_examples": len(examples.keys),
        "num_left_out": sum(row.stage == "sample" for row in rejects),
        "decoded_px_per_s": DECODED_PX_PER_S,
        "cost_model": MODEL,
        "settings": [
            {"options": setting.options, "config": cast(Options, output_affecting(setting.config))}
            for setting in settings
        ],
        "rows": rows,
    }


def _advance(advance: Callable[[int], None], before: int, done: int) -> None:
    advance(before + done)


def _row(number: int, setting: Setting, packer: str, planned: Planned, tally: Tally) -> ComparedRow:
    config, sequences = setting.config, tally.num_sequences
    room = sequences * config.sequence_length
    steps = planned.steps if packer == OURS else None
    return {
        "setting": number,
        "packer": packer,
        "num_sequences": sequences,
        "num_segments": tally.num_segments,
        "num_tokens": tally.num_tokens,
        "num_rejects": planned.num_rejects,
        "num_shrunk": planned.num_shrunk,
        "padding_fraction": (room - tally.num_tokens) / room if room else None,
        "examples_per_sequence": tally.num_segments / sequences if sequences else None,
        "attention_cost": tally.attention_cost,
        "relative_attention_cost": None,
        "max_over_mean": {str(ranks): random_ratio(tally.costs, ranks) for ranks in RANKS},
        "balanced_max_over_mean": float(steps.ratio_sum / steps.num_steps) if steps and steps.num_steps else None,
        "predicted_bytes": tally.num_bytes,
        "decode_core_hours": planned.source_px / DECODED_PX_PER_S / 3600,
        "attention_gpu_hours": gpu_hours(tally.attention_flops) / config.views,
        "gpu_hours": gpu_hours(tally.flops) / config.views,
    }
