"""The verdict and the advice of a report in sentences, for the terminal and the page alike."""

from patchpack.schemas.report import Report
from patchpack.schemas.whatif import Advice

# smaller changes need no word
_SAME_PADDING, _SAME_RATIO = 0.0005, 0.005

_REASONS = {
    "length": "these examples fill such sequences better",
    "segments": "{share} of the sequences hold as many examples as they may",
    "giants": "a few examples have many times the tokens of the others",
    "duplicates": "{share} of the inputs look like copies of others",
    "upsampled": "{share} of the examples are larger than their sources",
    "unbalanced": "a step waits for its most expensive sequence",
    "shrunk": "{share} of the examples are shrunk to the cap",
}


def summary(report: Report) -> str:
    """Returns how well a dataset is packed in one sentence: efficiency, padding, and whether fewer sequences are possible."""
    figures, totals = report["efficiency"], report["totals"]
    if figures["efficiency"] is None or figures["padding_fraction"] is None:
        return (
            f"Nothing was stored: {totals['num_inputs']:,} inputs, {totals['num_rejected_inputs']:,} of them rejected."
        )
    gap, bound = sum(entry["gap"] for entry in report["bounds"]), sum(entry["bound"] for entry in report["bounds"])
    if not gap:
        proof = "proven optimal, no packing of these examples needs fewer sequences"
    else:
        proof = f"at most {gap:,} of {gap + bound:,} sequences ({percent(gap / (gap + bound))}) more than the least possible"
    return f"{percent(figures['efficiency'])} of the places hold tokens, {percent(figures['padding_fraction'])} are padding: {proof}."


def growth(report: Report) -> list[str]:
    """Returns a line for each time that inputs were added, the first time first: what the dataset was before."""
    return [f"grown, before {one['dataset_digest']} of {one['num_sequences']:,} sequences" for one in report["earlier"]]


def reason(advice: Advice) -> str:
    """Returns what a change cures."""
    return _REASONS[advice["why"]].format(share="" if advice["share"] is None else percent(advice["share"]))


def effects(advice: Advice) -> list[str]:
    """Returns what a change is predicted to give, the figures that it changes alone."""
    found = []
    before, after = advice["padding_before"], advice["padding_after"]
    if before is not None and after is not None and abs(before - after) >= _SAME_PADDING:
        found.append(f"padding {percent(before)} -> {percent(after)}")
    step, later = advice["step_before"], advice["step_after"]
    if (
        step is not None
        and later is not None
        and abs(step - later) >= _SAME_RATIO
        and advice["why"] in ("unbalanced", "giants")
    ):
        found.append(f"cost of a step, max / mean {step:.2f} -> {later:.2f}")
    if abs(advice["attention_ratio"] - 1) >= _SAME_RATIO:
        found.append(f"attention cost x{advice['attention_ratio']:.2f}")
    found.append(f"time of an epoch x{advice['time_ratio']:.2f}")
    return found


def percent(value: float) -> str:
    """Returns a fraction in percent, with as many digits as tell it from 0 and 100 %."""
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    for digits in (1, 2, 3):
        shown = f"{value * 100:.{digits}f}"
        if float(shown) not in (0, 100):
            return f"{shown} %"
    return "under 0.001 %" if value < 0.5 else "over 99.999 %"
