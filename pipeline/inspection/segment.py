"""One segment shown: its frames put back together from tokens, and the words below; shared by `inspect` and the gallery of the report."""

from itertools import pairwise

import numpy as np

from patchpack.pipeline.media.patchify import unpatchify_layout
from patchpack.pipeline.report.text import fraction
from patchpack.schemas import Layout
from patchpack.schemas.geometry import Grid
from patchpack.schemas.sequence import Segment, Sequence

# level of tokens that were dropped
DROPPED = 128


class NamedSegment(Segment):
    """A segment with its labels' names beside them; None where the manifest has no class of that number."""

    label_names: list[str | None]


def named(segment: Segment, classes: tuple[str, ...] | None) -> NamedSegment:
    """Returns a segment with its labels' names beside them."""
    names = [classes[label] if classes and 0 <= label < len(classes) else None for label in segment["labels"]]
    return {**segment, "label_names": names}


def frames_of(segment: Segment, row: Sequence, layout: Layout) -> np.ndarray:
    """Returns a segment's frames to show, (T, H, W, C) uint8 with C of 1 or 3: all of them, or the first of each tubelet of several frames.

    Tokens that were dropped are grey. Values that are no bytes are stretched from their least to their most, and where channels are no
    colours their mean is shown.
    """
    grid = Grid(segment["grid_t"], segment["grid_h"], segment["grid_w"])
    kept = slice(segment["start"], segment["start"] + segment["num_tokens"])
    tokens_NP = _levels(row["tokens"][kept])
    if segment["num_tokens"] < grid.num_tokens:
        places = np.ravel_multi_index(row["positions"][kept].T.astype(np.int64), grid)
        all_NP = np.full((grid.num_tokens, layout.token_width), DROPPED, np.uint8)
        all_NP[places] = tokens_NP
        tokens_NP = all_NP
    frames_THWC = unpatchify_layout(tokens_NP, grid, layout)[:: layout.stride[0]]
    if layout.channels in (1, 3):
        return frames_THWC
    means_THWC: np.ndarray = frames_THWC.mean(axis=3, keepdims=True).round().astype(np.uint8)
    return means_THWC


def frame_times(segment: Segment, layout: Layout) -> list[float | None]:
    """Returns when each frame of `frames_of` is shown, s; None where it repeats the last one, or is no clip's."""
    times = segment["timestamps_s"]
    shown = range(0, segment["grid_t"] * layout.stride[0], layout.stride[0])
    return [times[number] if number < len(times) else None for number in shown]


def captions(segment: NamedSegment) -> list[str]:
    """Returns what stands below a segment's frames, in short lines: sizes, tokens, time, labels, the first caption."""
    lines = [
        f"{segment['num_tokens']:,} tokens, grid {grid_words(segment)}",
        f"{segment['height']}x{segment['width']} px, target {segment['target_height']}x{segment['target_width']}",
        f"source {segment['source_height']}x{segment['source_width']} px",
        *shown_part(segment),
    ]
    if segment["kept_fraction"] < 1:
        lines.append(f"kept {fraction(segment['kept_fraction'])} of its tokens")
    if segment["clip_start_s"] is not None:
        frames = "1 frame" if segment["num_frames"] == 1 else f"{segment['num_frames']:,} frames"
        repeated = f", {segment['num_repeated_frames']} repeated" if segment["num_repeated_frames"] else ""
        times = segment["timestamps_s"]
        when = (
            f", {times[0]:.2f} to {times[-1]:.2f} s"
            if len(times) > 1
            else "".join(f" at {time:.2f} s" for time in times)
        )
        lines.append(f"{frames}{when}{repeated}")
    lines += label_lines(segment)
    return lines + [f"caption: {caption}" for caption in segment["captions"][:1]]


def grid_words(segment: Segment) -> str:
    """Returns the grid as t x h x w."""
    return f"{segment['grid_t']}x{segment['grid_h']}x{segment['grid_w']}"


def label_lines(segment: NamedSegment) -> list[str]:
    """Returns a line a label: its number, and its class."""
    return [
        f"label {label}: {name if name is not None else 'not in the class list'}"
        for label, name in zip(segment["labels"], segment["label_names"], strict=True)
    ]


def shown_part(segment: NamedSegment) -> list[str]:
    """Returns which part of the source is shown, and where in the grid, in one line; none where it is all of both."""
    if "valid_height" not in segment:
        return []
    words = []
    crop = segment["crop_height"], segment["crop_width"]
    if crop != (segment["source_height"], segment["source_width"]):
        words.append(f"part {crop[0]}x{crop[1]} at {segment['crop_top']},{segment['crop_left']}")
    valid = segment["valid_height"], segment["valid_width"]
    if valid != (segment["height"], segment["width"]):
        words.append(f"image {valid[0]}x{valid[1]} px, the rest is padding")
    if segment["flipped"]:
        words.append("mirrored")
    return [", ".join(words)] if words else []


def details(segment: NamedSegment) -> list[str]:
    """Returns everything of a segment in lines for a terminal."""
    source = f"{segment['source_height']}x{segment['source_width']}"
    target = f"{segment['target_height']}x{segment['target_width']}"
    lines = [
        f"example {segment['example_id']} view {segment['view']}",
        f"tokens {segment['start']:,} to {segment['start'] + segment['num_tokens'] - 1:,} "
        f"({segment['num_tokens']:,}), grid {grid_words(segment)}, kept {fraction(segment['kept_fraction'])}",
        f"{source} px, target {target}, is {segment['height']}x{segment['width']}",
        *shown_part(segment),
    ]
    times = segment["timestamps_s"]
    if times:
        steps = [later - sooner for sooner, later in pairwise(times)]
        lines.append(
            f"frames: {segment['num_frames']}, {segment['num_repeated_frames']} repeated, {times[0]:.3f} to {times[-1]:.3f} s"
            + (f", {min(steps):.3f} to {max(steps):.3f} s apart" if steps else "")
        )
    lines += label_lines(segment) + [f"caption: {caption}" for caption in segment["captions"]]
    if segment.get("num_text_tokens"):
        first, count = segment["text_start"], segment["num_text_tokens"]
        lines.append(
            f"packed beside it: caption {segment['caption'] + 1}, text tokens {first:,} to {first + count - 1:,} ({count:,})"
        )
    return lines


def _levels(tokens_NP: np.ndarray) -> np.ndarray:
    """Returns tokens as bytes to show."""
    if tokens_NP.dtype == np.uint8:
        return tokens_NP
    values_NP = tokens_NP.astype(np.float64)
    finite = values_NP[np.isfinite(values_NP)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    shares_NP = (values_NP - low) / ((high - low) or 1.0)
    levels_NP: np.ndarray = np.nan_to_num(np.clip(shares_NP, 0, 1) * 255).round().astype(np.uint8)
    return levels_NP
