"""What `plan` predicts, as plain text for a terminal of 80 columns."""

from typing import TextIO

from patchpack.pipeline.report.text import WIDTH, arrangement_lines, size_lines
from patchpack.schemas.geometry import NO_CODEC
from patchpack.schemas.report import Prediction

_LABEL_WIDTH = 23


def print_prediction(made: Prediction, out: TextIO) -> None:
    """Prints what `launch.predict` returned."""
    planned = made["planned"]
    # what is in the pixels decides what a codec makes of it
    before = "" if made["config"]["codec"] == NO_CODEC else f" before {made['config']['codec']}"
    lines = {
        "inputs": f"{made['num_inputs']:,} ({made['num_rejected_inputs']:,} rejected)",
        "ignored": ", ".join(f"{count:,} {why}" for why, count in made["ignored"].items()) or "none",
        "rejects": ", ".join(f"{count:,} {why}" for why, count in made["rejects"].items()) or "none",
        "examples": f"{planned['num_segments']:,}",
        "tokens": f"{planned['num_tokens']:,}",
        "sequences": f"{planned['num_sequences']:,}",
        "efficiency": f"{made['efficiency']:.4f}",
        "shards": f"{planned['num_shards']:,}, about {made['predicted_bytes'] / 1e6:,.0f} MB{before}",
        "to decode": f"{planned['source_px'] / 1e6:,.0f} Mpx, about {made['predicted_decode_core_s'] / 60:,.1f} minutes of one core",
    }
    for bound in made["bounds"]:
        gap = bound["num_sequences"] - bound["bound"]
        lines[f"bound, view {bound['view']}"] = f"{bound['bound']:,} sequences, " + (
            "proven optimal" if not gap else f"gap {gap:,}"
        )
    sizes = size_lines(made, WIDTH - _LABEL_WIDTH)
    for name, value in [*lines.items(), *sizes, *arrangement_lines(made)]:
        print(f"{name:<{_LABEL_WIDTH}}{value}", file=out)
