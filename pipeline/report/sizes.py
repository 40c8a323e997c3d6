"""What planning did to examples so that they fit: shrunk, enlarged, cut short, frames repeated.

Said by planning, which knows it exactly; a stored example no longer says whether a cap or the grid made it small.
Kept as exact counts of integers (sides in steps of 1 / SIDE_STEPS), so memory depends on how many different values
there are and not on how many examples, and groups add up.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.report.statistics import distribution
from patchpack.schemas.figures import Number, Options
from patchpack.schemas.geometry import MAX_ROW_BYTES, Layout
from patchpack.schemas.report import Sizes

SIDE_STEPS = 1000

# name, count, and what there is to say about it
Fact = tuple[str, str, list[str]]


@dataclass(frozen=True, slots=True)
class SizeCounts:
    """Counts of one group: examples and clips, and of those that were shrunk or enlarged how many to what."""

    num_examples: int
    num_clips: int
    num_shrunk_clips: int
    num_upscaled_clips: int
    num_short_clips: int
    num_slow_clips: int
    num_slow_frames: int
    # tokens that they would have had, sides in steps of 1 / SIDE_STEPS
    shrunk_tokens: dict[int, int]
    shrunk_side: dict[int, int]
    upscaled_side: dict[int, int]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SizeCounts":
        """Returns the counts that JSON has made an object of, whose keys are text."""
        counts = {name: by_number(values[name]) for name in ("shrunk_tokens", "shrunk_side", "upscaled_side")}
        return cls(**values | counts)


_NUMBERS = tuple(field.name for field in dataclasses.fields(SizeCounts) if field.name.startswith("num_"))


def by_number(counts: Mapping[str, int]) -> dict[int, int]:
    """Returns counts of numbers whose keys JSON has made text."""
    return {int(number): count for number, count in counts.items()}


def count_sizes(planned: pa.Table, layouts: Sequence[Layout], clip_frames: int) -> SizeCounts:
    """Returns the counts of what is planned together.

    Args:
        planned: rows of `tables.REFERENCE_SCHEMA`, at the grids that are planned.
        layouts: of the build.
        clip_frames: frames of a clip that is not cut short.
    """

    def column(name: str) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = planned[name].to_numpy().astype(np.int64)
        return found

    frames = pc.list_value_length(planned["frame_pts"]).to_numpy().astype(np.int64)
    is_clip = frames > 0
    repeated = np.zeros(len(planned), dtype=np.int64)
    for at in np.flatnonzero(is_clip).tolist():
        pts = planned["frame_pts"][at].as_py()
        repeated[at] = len(pts) - len(set(pts))
    strides = np.array([layout.stride for layout in layouts])[column("layout")]
    area = column("grid_h") * strides[:, 1] * column("grid_w") * strides[:, 2]
    source_area = column("box_height") * column("box_width")
    uncapped, is_larger = column("uncapped_tokens"), area > source_area
    is_shrunk = uncapped > 0
    shrunk_side, upscaled_side = (
        Counter(map(_side, of[which].tolist(), to[which].tolist()))
        for of, to, which in ((column("num_tokens"), uncapped, is_shrunk), (area, source_area, is_larger))
    )
    return SizeCounts(
        num_examples=len(planned),
        num_clips=int(is_clip.sum()),
        num_shrunk_clips=int((is_clip & is_shrunk).sum()),
        num_upscaled_clips=int((is_clip & is_larger).sum()),
        num_short_clips=int((is_clip & (frames < clip_frames)).sum()),
        num_slow_clips=int((repeated > 0).sum()),
        num_slow_frames=int(repeated.sum()),
        shrunk_tokens=dict(Counter(uncapped[is_shrunk].tolist())),
        shrunk_side=dict(shrunk_side),
        upscaled_side=dict(upscaled_side),
    )


def merge_sizes(groups: Iterable[SizeCounts]) -> Sizes:
    """Returns the figures over all groups."""
    numbers: Counter[str] = Counter(dict.fromkeys(_NUMBERS, 0))
    shrunk_tokens, shrunk_side, upscaled_side = Counter[int](), Counter[int](), Counter[int]()
    for group in groups:
        numbers.update({name: getattr(group, name) for name in _NUMBERS})
        shrunk_tokens.update(group.shrunk_tokens)
        shrunk_side.update(group.shrunk_side)
        upscaled_side.update(group.upscaled_side)
    tokens = distribution(shrunk_tokens)
    shrunk, upscaled = (distribution(sides, SIDE_STEPS) for sides in (shrunk_side, upscaled_side))
    return {
        "num_examples": numbers["num_examples"],
        "num_clips": numbers["num_clips"],
        "num_shrunk_clips": numbers["num_shrunk_clips"],
        "num_upscaled_clips": numbers["num_upscaled_clips"],
        "num_short_clips": numbers["num_short_clips"],
        "num_slow_clips": numbers["num_slow_clips"],
        "num_slow_frames": numbers["num_slow_frames"],
        "num_shrunk": shrunk["num"],
        "shrunk_side_median": shrunk["median"],
        "shrunk_side_min": shrunk["min"],
        "cap_for_all": _whole(tokens["max"]),
        "cap_for_95_percent": _whole(tokens["p95"]),
        "num_upscaled": upscaled["num"],
        "upscaled_side_median": upscaled["median"],
        "upscaled_side_max": upscaled["max"],
    }


SIZE_NAMES = tuple(Sizes.__annotations__)


def size_facts(sizes: Sizes, config: Options) -> list[Fact]:
    """Returns what there is to say: always whether examples are shrunk, of the rest only what occurs.

    Args:
        sizes: as `merge_sizes` returned them.
        config: the options of the build.
    """
    of_clips = f"of {sizes['num_clips']:,} {_plural('clip', sizes['num_clips'])}"
    of_shrunk = _of(sizes, sizes["num_shrunk"], sizes["num_shrunk_clips"])
    facts: list[Fact] = [("shrunk to the cap", of_shrunk, [])]
    if sizes["cap_for_all"] is not None and sizes["cap_for_95_percent"] is not None:
        sides = f"to {sizes['shrunk_side_median']:.2f} of the side drawn, the worst to {sizes['shrunk_side_min']:.2f}"
        facts[0][2].extend([sides, _way_out(sizes["cap_for_all"], sizes["cap_for_95_percent"], config)])
    if sizes["num_upscaled"]:
        sides = f"{sizes['upscaled_side_median']:.2f} of the source's side, at most {sizes['upscaled_side_max']:.2f}"
        of_enlarged = _of(sizes, sizes["num_upscaled"], sizes["num_upscaled_clips"])
        facts.append(("enlarged", of_enlarged, [f"to {sides}"]))
    if sizes["num_short_clips"]:
        words = f"their video ends before --clip-frames {config['clip_frames']}"
        facts.append(("cut short", f"{sizes['num_short_clips']:,} {of_clips}", [words]))
    if sizes["num_slow_clips"]:
        words = f"their source is slower than --fps {config['fps']:g}"
        facts.append(
            ("repeated frames", f"{sizes['num_slow_frames']:,} in {sizes['num_slow_clips']:,} {of_clips}", [words])
        )
    return facts


def _whole(value: Number | None) -> int | None:
    return None if value is None else int(value)


def _side(area: int, other: int) -> int:
    """Returns one side over the other in steps of 1 / SIDE_STEPS, rounded down."""
    return math.isqrt(area * SIDE_STEPS**2 // other)


def _of(sizes: Sizes, examples: int, clips: int) -> str:
    """Returns how many images and clips something happened to; kinds to which it did not happen are left out."""
    num_clips = sizes["num_clips"]
    kinds = [("image", examples - clips, sizes["num_examples"] - num_clips), ("clip", clips, num_clips)]
    parts = [f"{count:,} of {total:,} {_plural(kind, total)}" for kind, count, total in kinds if count]
    return " and ".join(parts) or "none"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _way_out(every: int, most: int, config: Options) -> str:
    """Returns which options would shrink none, and which only a few."""
    length, given = config["sequence_length"], config["max_tokens_per_example"]
    longest = MAX_ROW_BYTES // (math.prod(config["tubelet"]) * 3)

    def option(cap: int) -> str:
        if given and cap <= length:
            return f"--max-tokens-per-example {cap}"
        return f"--sequence-length {cap}" + (f" --max-tokens-per-example {cap}" if given else "")

    if every <= longest:
        return f"{option(every)} shrinks none" + (f", {most} fits 95 %" if most < every else "")
    fewer = "a lower --resolution or --clip-frames shrinks none"
    return f"{option(most)} fits 95 %, {fewer}" if most <= longest else fewer
