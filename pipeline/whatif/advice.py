"""Up to three changes of options that would make training cheaper, each tried on the same examples: the advice of a report.

The report says which changes to try: one is tried where its figures show what it cures. What each gives is planned by the what-if
engine, on at most MAX_EXAMPLES of the saved plan's examples, and ranked by the training time that it saves. Costs a second or
two, whatever the size of the dataset. Gives up changes of two options at once.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.stages import saved
from patchpack.pipeline.whatif.examples import read_planned
from patchpack.pipeline.whatif.rows import RANKS, compare
from patchpack.pipeline.whatif.settings import OURS, Setting, parse_setting
from patchpack.schemas.geometry import MAX_ROW_BYTES
from patchpack.schemas.manifest import Manifest
from patchpack.schemas.report import Report
from patchpack.schemas.whatif import Advice, ComparedRow, WhatIf, Why

MAX_ADVICE = 3
# a group of them is packed in less than half a second
MAX_EXAMPLES = 4096
# the same number of sequences as at 1 on all sets tried (photos and clips, 72 to 4,096 examples, lengths 1,024 to 8,192), in
# 0.05 to 0.4 s instead of 0.3 to 7
EFFORT = 0.01
# less is noise between two draws
LEAST_GAIN = 0.02
# a longer sequence costs; fewer pixels than that are no reason for it
LEAST_SHRUNK = 0.1
# an example is a giant that has so many times the tokens of nineteen in twenty
GIANT = 4
# equal sizes are copies where they are so many times as frequent as sizes that differ by a byte
CHANCE = 5


class Candidate(NamedTuple):
    """A change to try, and what it would cure."""

    options: str
    why: Why


def with_advice(folder: str, manifest: Manifest, report: Report) -> Report:
    """Returns a report with advice; arguments are those of `advise`."""
    advised = advise(folder, manifest, report)
    return report if advised is None else {**report, "advice": advised[0], "what_if": advised[1]}


def advise(folder: str, manifest: Manifest, report: Report) -> tuple[list[Advice], WhatIf] | None:
    """Returns the advice for a dataset, the largest gain first, and the comparison behind it; None without a saved plan.

    Args:
        folder: where the dataset and its plan lie.
        manifest: of the dataset.
        report: of the dataset.

    Raises:
        FormatError: the plan was damaged.
    """
    examples = read_planned(folder, MAX_EXAMPLES)
    if not examples.keys:
        return None
    base = config_of(manifest)
    candidates = list(_candidates(report, base))
    settings = [Setting("", base)]
    settings += [dataclasses.replace(parse_setting(one.options, base), packers=(OURS,)) for one in candidates]
    made = compare(examples, [], settings, effort=EFFORT)
    first, *rows = [row for row in made["rows"] if row["packer"] == OURS]
    advice = [
        _advice(candidate, report, base.sequence_length, first, row)
        for candidate, row in zip(candidates, rows, strict=True)
        if row["num_tokens"]
    ]
    if base.dedupe == "none":
        advice.append(_of_duplicates(duplicates(folder), first))
    best: dict[Why, Advice] = {}
    for one in sorted(advice, key=lambda one: -one["gain"]):
        if one["gain"] >= (LEAST_SHRUNK if one["why"] == "shrunk" else LEAST_GAIN):
            best.setdefault(one["why"], one)
    return list(best.values())[:MAX_ADVICE], made


def config_of(manifest: Manifest) -> PlanConfig:
    """Returns the options that decided a dataset's bytes, and defaults for the others."""
    known = {field.name for field in dataclasses.fields(PlanConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.config.items()
        if name in known
    }
    # where labels, classes and captions come from decides no size that is not in the plan
    return PlanConfig(**values | {"labels": "none", "classes": None})


def duplicates(folder: str) -> float:
    """Returns how many of a plan's inputs look like copies of others: files of equal bytes in size, height and width, a fraction.

    Files of chance have a neighbour one byte larger as often as one of the same size: where copies are not far more frequent than
    that, it is 0. Reads five columns of the plan, and no file.
    """
    columns = ["key", "size_bytes", "source_height", "source_width"]
    tables = [table.group_by(columns).aggregate([]) for table in saved.read_columns(folder, columns)]
    inputs = pa.concat_tables(tables).group_by(columns).aggregate([])
    sizes = Counter(zip(*(inputs[name].to_pylist() for name in columns[1:]), strict=True))
    same = sum(count * (count - 1) // 2 for count in sizes.values())
    beside = sum(count * sizes[size + 1, height, width] for (size, height, width), count in list(sizes.items()))
    return (len(inputs) - len(sizes)) / len(inputs) if same > CHANCE * beside else 0.0


def _candidates(report: Report, base: PlanConfig) -> Iterator[Candidate]:
    """Yields the changes to try: other lengths always, the others where the report shows what they cure."""
    length, tokens = base.sequence_length, report["tokens_per_example"]
    widest = max(layout.token_width for layout in base.layouts)
    for number in (length // 2, length * 2, length * 4):
        longest = tokens["max"]
        if longest is not None and longest <= number and number * widest <= MAX_ROW_BYTES:
            yield Candidate(f"--sequence-length {number}", "length")
    if report["segment_limit"]["num_at_limit"] and tokens["p5"]:
        # as many as a sequence of small examples holds
        most = _power_of_two(length / tokens["p5"])
        if most > base.max_segments:
            yield Candidate(f"--max-segments {most}", "segments")
    if tokens["max"] is not None and tokens["p95"] is not None and tokens["max"] > GIANT * tokens["p95"]:
        yield Candidate(f"--max-tokens-per-example {_rounded(tokens['p95'])}", "giants")
    sizes = report["sizes"]
    if sizes is not None and sizes["num_examples"]:
        if base.upsample == "allow" and sizes["num_upscaled"] >= LEAST_GAIN * sizes["num_examples"]:
            yield Candidate("--upsample never", "upsampled")
        cap = sizes["cap_for_95_percent"]
        if (
            cap is not None
            and cap * widest <= MAX_ROW_BYTES
            and sizes["num_shrunk"] >= LEAST_GAIN * sizes["num_examples"]
        ):
            yield _for_shrunk(cap, base)
    if base.balance_step is None and report["totals"]["stored"]["num_sequences"] >= 2 * _ranks(report):
        yield Candidate(f"--balance-step {_ranks(report)}", "unbalanced")


def _for_shrunk(cap: int, base: PlanConfig) -> Candidate:
    """Returns the change under which at most a twentieth of the shrunk examples still are."""
    options = [f"--sequence-length {_rounded(cap)}"] if cap > base.sequence_length else []
    if base.max_tokens_per_example is not None:
        options.append(f"--max-tokens-per-example {cap}")
    return Candidate(" ".join(options), "shrunk")


def _rounded(tokens: float) -> int:
    """Returns a number of tokens that kernels like, at least so many."""
    return -int(-tokens // 64) * 64


def _power_of_two(least: float) -> int:
    return int(2 ** math.ceil(math.log2(max(1, least))))


def _ranks(report: Report) -> int:
    return RANKS[1] if report["totals"]["stored"]["num_sequences"] >= 2 * RANKS[1] else RANKS[0]


def _advice(candidate: Candidate, report: Report, length: int, base: ComparedRow, row: ComparedRow) -> Advice:
    """Returns a change with what is predicted of it; `length` is the base's sequence length."""
    why, ranks = candidate.why, _ranks(report)
    before, after = _step(base, ranks), _step(row, ranks)
    time_ratio = _hours(row, after) / _hours(base, before)
    of_token = time_ratio * base["num_tokens"] / row["num_tokens"]
    gain, share = 1 - of_token, None
    if why in ("length", "segments"):
        # the last sequence of a few is seldom full, whatever the options
        room = base["num_sequences"] * length - base["num_tokens"]
        saved_tokens = room - (row["padding_fraction"] or 0) * row["num_tokens"] / (1 - (row["padding_fraction"] or 0))
        gain = gain if saved_tokens > length else 0.0
    if why == "segments":
        share = report["segment_limit"]["num_at_limit"] / report["totals"]["stored"]["num_sequences"]
    sizes = report["sizes"]
    if why == "upsampled" and sizes is not None:
        gain, share = 1 - time_ratio, sizes["num_upscaled"] / sizes["num_examples"]
    if why == "shrunk" and sizes is not None:
        side = sizes["shrunk_side_median"] or 1
        gain = (base["num_shrunk"] / base["num_segments"] - row["num_shrunk"] / row["num_segments"]) * (1 - side**2)
        share = sizes["num_shrunk"] / sizes["num_examples"]
    return {
        "why": why,
        "options": candidate.options,
        "gain": gain,
        "share": share,
        "padding_before": base["padding_fraction"],
        "padding_after": row["padding_fraction"],
        "attention_ratio": row["relative_attention_cost"] or 0.0,
        "step_before": before,
        "step_after": after,
        "time_ratio": time_ratio,
    }


def _of_duplicates(share: float, base: ComparedRow) -> Advice:
    """Returns what leaving out copies gives: as much less of everything."""
    padding = base["padding_fraction"]
    return {
        "why": "duplicates",
        "options": "--dedupe digest",
        "gain": share,
        "share": share,
        "padding_before": padding,
        "padding_after": padding,
        "attention_ratio": 1 - share,
        "step_before": None,
        "step_after": None,
        "time_ratio": 1 - share,
    }


def _step(row: ComparedRow, ranks: int) -> float | None:
    """Returns the cost of the most expensive sequence of a step over the mean: of the stored steps, or else of random ones."""
    balanced = row["balanced_max_over_mean"]
    return row["max_over_mean"][str(ranks)] if balanced is None else balanced


def _hours(row: ComparedRow, step: float | None) -> float:
    """Returns the hours of a device in an epoch, those included in which it waits for the most expensive sequence of each step."""
    return row["gpu_hours"] + row["attention_gpu_hours"] * ((step or 1) - 1)
