"""What planning did to examples so that they fit: shrunk, enlarged, cut short, frames repeated.

Said by planning, which knows it exactly; a stored example no longer says whether a cap or the grid made it small.
Kept as exact counts of integers (sides in steps of 1 / SIDE_STEPS), so memory depends on how many different values
there are and not on how many examples, and groups add up.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from patchpack.pipeline.report.statistics import distribution
from patchpack.pipeline.stages.records import Reference
from patchpack.schemas.geometry import MAX_ROW_BYTES, Grid

SIDE_STEPS = 1000

_NUMBERS = (
    "num_examples",
    "num_clips",
    "num_shrunk_clips",
    "num_upscaled_clips",
    "num_short_clips",
    "num_slow_clips",
    "num_slow_frames",
)
_COUNTS = ("shrunk_tokens", "shrunk_side", "upscaled_side")

# name, count, and what there is to say about it
Fact = tuple[str, str, list[str]]


def count_sizes(references: Iterable[Reference], patch: Grid, clip_frames: int) -> dict[str, Any]:
    """Returns the counts of a group, as JSON for its summary.

    Args:
        references: at the grids that are planned.
        patch: the tubelet, (frames, height px, width px).
        clip_frames: frames of a clip that is not cut short.
    """
    numbers: Counter[str] = Counter(dict.fromkeys(_NUMBERS, 0))
    counts: dict[str, Counter[int]] = {name: Counter() for name in _COUNTS}
    for reference in references:
        example, (_, h, w) = reference.example, reference.grid
        num_frames = len(example.frame_pts)
        is_clip = num_frames > 0
        num_repeated = num_frames - len(set(example.frame_pts))
        area, source_area = h * patch[1] * w * patch[2], example.source_height * example.source_width
        if reference.uncapped_tokens:
            counts["shrunk_tokens"][reference.uncapped_tokens] += 1
            counts["shrunk_side"][_side(reference.num_tokens, reference.uncapped_tokens)] += 1
        if area > source_area:
            counts["upscaled_side"][_side(area, source_area)] += 1
        numbers.update(
            num_examples=1,
            num_clips=is_clip,
            num_shrunk_clips=is_clip and reference.uncapped_tokens > 0,
            num_upscaled_clips=is_clip and area > source_area,
            num_short_clips=is_clip and num_frames < clip_frames,
            num_slow_clips=num_repeated > 0,
            num_slow_frames=num_repeated,
        )
    parts = {name: {str(value): counter[value] for value in sorted(counter)} for name, counter in counts.items()}
    return dict(numbers) | parts


def merge_sizes(groups: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Returns the figures over all groups, or None where a group has no counts (an older plan).

    `shrunk_side_*` are realised over requested side, `upscaled_side_*` realised over the source's; `cap_for_all` is the
    least --max-tokens-per-example that shrinks none, `cap_for_95_percent` one that shrinks at most a twentieth of those
    that are shrunk now. None stands where there is no such example.
    """
    numbers: Counter[str] = Counter(dict.fromkeys(_NUMBERS, 0))
    counts: dict[str, Counter[int]] = {name: Counter() for name in _COUNTS}
    for group in groups:
        if group is None:
            return None
        numbers.update({name: group[name] for name in _NUMBERS})
        for name, counter in counts.items():
            counter.update({int(value): count for value, count in group[name].items()})
    tokens = distribution(counts["shrunk_tokens"])
    shrunk, upscaled = (distribution(counts[name], SIDE_STEPS) for name in ("shrunk_side", "upscaled_side"))
    return dict(numbers) | {
        "num_shrunk": shrunk["num"],
        "shrunk_side_median": shrunk["median"],
        "shrunk_side_min": shrunk["min"],
        "cap_for_all": tokens["max"],
        "cap_for_95_percent": tokens["p95"],
        "num_upscaled": upscaled["num"],
        "upscaled_side_median": upscaled["median"],
        "upscaled_side_max": upscaled["max"],
    }


SIZE_NAMES = tuple(merge_sizes([]) or ())


def size_facts(sizes: dict[str, Any], config: dict[str, Any]) -> list[Fact]:
    """Returns what there is to say: always whether examples are shrunk, of the rest only what occurs.

    Args:
        sizes: as `merge_sizes` returned them.
        config: the options of the build.
    """
    of_clips = f"of {sizes['num_clips']:,} {_plural('clip', sizes['num_clips'])}"
    facts: list[Fact] = [("shrunk to the cap", _of(sizes, "shrunk"), [])]
    if sizes["num_shrunk"]:
        sides = f"to {sizes['shrunk_side_median']:.2f} of the side drawn, the worst to {sizes['shrunk_side_min']:.2f}"
        facts[0][2].extend([sides, _way_out(sizes, config)])
    if sizes["num_upscaled"]:
        sides = f"{sizes['upscaled_side_median']:.2f} of the source's side, at most {sizes['upscaled_side_max']:.2f}"
        facts.append(("enlarged", _of(sizes, "upscaled"), [f"to {sides}"]))
    if sizes["num_short_clips"]:
        words = f"their video ends before --clip-frames {config['clip_frames']}"
        facts.append(("cut short", f"{sizes['num_short_clips']:,} {of_clips}", [words]))
    if sizes["num_slow_clips"]:
        words = f"their source is slower than --fps {config['fps']:g}"
        facts.append(
            ("repeated frames", f"{sizes['num_slow_frames']:,} in {sizes['num_slow_clips']:,} {of_clips}", [words])
        )
    return facts


def _side(area: int, other: int) -> int:
    """Returns one side over the other in steps of 1 / SIDE_STEPS, rounded down."""
    return math.isqrt(area * SIDE_STEPS**2 // other)


def _of(sizes: dict[str, Any], what: str) -> str:
    """Returns how many images and clips something happened to; kinds to which it did not happen are left out."""
    clips, num_clips = sizes[f"num_{what}_clips"], sizes["num_clips"]
    images, num_images = sizes[f"num_{what}"] - clips, sizes["num_examples"] - num_clips
    kinds = [("image", images, num_images), ("clip", clips, num_clips)]
    parts = [f"{count:,} of {total:,} {_plural(kind, total)}" for kind, count, total in kinds if count]
    return " and ".join(parts) or "none"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _way_out(sizes: dict[str, Any], config: dict[str, Any]) -> str:
    """Returns which options would shrink none, and which only a few."""
    every, most = sizes["cap_for_all"], sizes["cap_for_95_percent"]
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
