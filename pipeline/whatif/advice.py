"""Up to three changes of options that would make training cheaper, each tried on the same examples: the advice of a report.

The report says which changes to try: one is tried where its figures show what it cures. What each gives is planned by the what-if
engine, on at most MAX_EXAMPLES of the saved plan's examples, and ranked by the training time that it saves. Costs a second or
two, whatever the size of the dataset. Gives up changes of two options at once.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.whatif.examples import read_heads, read_planned
from patchpack.pipeline.whatif.rows import RANKS, compare
from patchpack.pipeline.whatif.settings import OURS, Setting, parse_setting
from patchpack.schemas.errors import FormatError
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
MUCH_PADDING = 0.1
# a longer sequence costs; fewer pixels than that are no reason for it
LEAST_SHRUNK = 0.1
# an example is a giant that has so many times the tokens of nineteen in twenty
GIANT = 4
# more of them are no exception
MOST_GIANTS = 1 / 200


class Candidate(NamedTuple):
    """A change to try, and what it would cure."""

    options: str
    why: Why


def with_advice(folder: str, manifest: Manifest, report: Report) -> Report:
    """Returns a report with advice; arguments are those of `advise`.

    A finished dataset needs no plan: with one that was damaged, is of another version or cannot be read it has no advice.
    """
    try:
        advised = advise(folder, manifest, report)
    except (FormatError, OSError):
        advised = None
    return report if advised is None else {**report, "advice": advised[0], "what_if": advised[1]}


def advise(folder: str, manifest: Manifest, report: Report) -> tuple[list[Advice], WhatIf] | None:
    """Returns the advice for a dataset, the largest gain first, and the comparison behind it; None without a saved plan.

    Args:
        folder: where the dataset and its plan lie.
        manifest: of the dataset.
        report: of the dataset.

    Raises:
        FormatError: the plan was damaged, or is of another version.
        OSError: it cannot be read.
    """
    examples = read_planned(folder, MAX_EXAMPLES)
    if not examples.keys:
        return None
    base = config_of(manifest)
    if base is None:
        return None
    settings, candidates = [Setting("", base)], []
    for one in _candidates(report, base):
        try:
            setting = parse_setting(one.options, base)
        except ValueError:
            # other options forbid it
            continue
        settings.append(dataclasses.replace(setting, packers=(OURS,)))
        candidates.append(one)
    made = compare(examples, [], settings, effort=EFFORT)
    first, *cases = [
        _Case(row, made["settings"][row["setting"]]["config"]["sequence_length"], _step(row, _ranks(report)))
        for row in made["rows"]
        if row["packer"] == OURS
    ]
    both = zip(candidates, cases, strict=True)
    advice = [_advice(one, report, first, case) for one, case in both if case.row["num_tokens"]]
    if base.dedupe == "none":
        advice.append(_of_duplicates(duplicates(folder), first.row))
    best: dict[Why, Advice] = {}
    for found in sorted(advice, key=lambda found: -found["gain"]):
        if _helps(found):
            best.setdefault(found["why"], found)
    return list(best.values())[:MAX_ADVICE], made


def _helps(advice: Advice) -> bool:
    """Returns whether a change is enough of a gain, at scale and for this very dataset."""
    if advice["why"] == "shrunk":
        return advice["gain"] >= LEAST_SHRUNK
    return advice["gain"] >= LEAST_GAIN and advice["time_ratio"] <= 1 - LEAST_GAIN


def config_of(manifest: Manifest) -> PlanConfig | None:
    """Returns the options that decided a dataset's bytes, and defaults for the others; None where a file decides, too.

    Raises:
        FormatError: they are of another version.
    """
    known = {field.name for field in dataclasses.fields(PlanConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest.config.items()
        if name in known
    }
    if values.get("captions", "none") not in ("none", "bytes"):
        return None
    # where labels come from decides no size
    try:
        return PlanConfig(**values | {"labels": "none", "classes": None})
    except ValueError as error:
        raise FormatError(f"options of another version ({error}); build again") from error


def duplicates(folder: str) -> float:
    """Returns how many of a plan's inputs are probably copies of others, a fraction: files of one size that begin alike.

    Of inputs up to the greatest head that was kept, all are known. Reads no file.
    """
    known = read_heads(folder)
    return 1 - len(set(known)) / len(known) if known else 0.0


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
        # a length that was chosen for a giant leaves room
        shorter, padding = _power_of_two(GIANT * tokens["p95"]), report["efficiency"]["padding_fraction"]
        if shorter <= length // 2 and padding is not None and padding > MUCH_PADDING:
            yield Candidate(f"--sequence-length {shorter}", "giants")
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


class _Case(NamedTuple):
    """A setting as it was packed by our packer, with its sequence length and what its steps cost, max / mean."""

    row: ComparedRow
    length: int
    step: float | None

    def hours(self, *, at_scale: bool = False) -> float:
        """Returns the hours of a device in an epoch, with those in which it waits for the most expensive sequence of each step.

        At scale a sequence that is not full is none of a few: up to one of padding is then left out.
        """
        room = self.row["num_sequences"] * self.length
        left_out = min(room - self.row["num_tokens"], self.length - 1) / room if at_scale else 0
        attention = self.row["attention_gpu_hours"]
        return (self.row["gpu_hours"] - attention) * (1 - left_out) + attention * (self.step or 1)


def _advice(one: Candidate, report: Report, base: _Case, case: _Case) -> Advice:
    """Returns a change with what is predicted of it."""
    return {
        "why": one.why,
        "options": one.options,
        "gain": _gain(one.why, report, base, case),
        "share": _share(one.why, report),
        "padding_before": base.row["padding_fraction"],
        "padding_after": case.row["padding_fraction"],
        "attention_ratio": case.row["relative_attention_cost"] or 0.0,
        "step_before": base.step,
        "step_after": case.step,
        "time_ratio": case.hours() / base.hours(),
    }


def _gain(why: Why, report: Report, base: _Case, case: _Case) -> float:
    """Returns what a change is ranked by, see `Advice`."""
    num_examples, sizes = case.row["num_segments"], report["sizes"]
    num_shrunk = case.row["num_shrunk"] - base.row["num_shrunk"]
    if why == "giants" and num_shrunk > max(2, MOST_GIANTS * num_examples):
        return 0.0
    if why == "shrunk":
        side = (sizes and sizes["shrunk_side_median"]) or 1
        return -num_shrunk / num_examples * (1 - side**2)
    ratio = case.hours(at_scale=True) / base.hours(at_scale=True)
    if why == "upsampled":
        return 1 - ratio
    return 1 - ratio * base.row["num_tokens"] / case.row["num_tokens"]


def _share(why: Why, report: Report) -> float | None:
    """Returns the part of sequences or examples that a change is for."""
    sizes, stored = report["sizes"], report["totals"]["stored"]
    if why == "segments":
        return report["segment_limit"]["num_at_limit"] / stored["num_sequences"]
    if why in ("upsampled", "shrunk") and sizes is not None:
        return sizes["num_upscaled" if why == "upsampled" else "num_shrunk"] / sizes["num_examples"]
    return None


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
