"""Stage 2: the header of each input, and so its examples: one image, or the clips of a video.

Images: the header alone. Videos: one demux pass. No image is decoded here but a video's first frame, and animated
images where they are to be clips (only decoding says their times).
"""

import io
import json
from collections.abc import Sequence
from typing import IO

import xxhash

from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.media import SNIFF_BYTES, DecodeError, described, kind_of
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.video import timeline
from patchpack.pipeline.media.video.clips import ClipRule, take_clip
from patchpack.pipeline.sampling.draws import draw
from patchpack.pipeline.stages.list import NO_MEDIA, is_guess
from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Example, Ignored, Reject, Source, example_id, reject


def probe(
    source: Source,
    path: str,
    rule: ClipRule,
    max_pixels: int,
    max_bytes: int = 2**63 - 1,
    seed: int = 0,
    animated: str = "first",
) -> list[Example | Reject | Ignored]:
    """Returns the examples of one input, or its reject, or that it is no media where nobody said it were.

    Args:
        source: as listed.
        path: where it is.
        rule: how clips are taken of a video.
        max_pixels: most pixels of an image or frame.
        max_bytes: most bytes of a file; larger ones are not read.
        seed: of the build.
        animated: "clip" to make clips of animated images, too.

    Raises:
        OSError: it cannot be read.
    """
    examples: Sequence[Example | Reject]
    try:
        with open_source(source, path, whole=False) as file:
            if is_guess(source) and kind_of(file.read(SNIFF_BYTES)) == "unknown":
                # no reject: a README or an archive beside the photos says nothing against them
                return [Ignored(source.key, NO_MEDIA)]
            size_bytes = file.seek(0, io.SEEK_END)
            if size_bytes > max_bytes:
                raise DecodeError("too_large", f"{size_bytes} bytes; --max-bytes is {max_bytes}")
            source = source._replace(size_bytes=size_bytes) if source.size_bytes < 0 else source
            file.seek(0)
            head = file.read(SNIFF_BYTES)
            file.seek(0)
            source = source._replace(head=xxhash.xxh3_64_intdigest(head, seed=size_bytes))
            kind = kind_of(head)
            if not head:
                raise DecodeError("empty", "0 bytes")
            if kind == "lfs_pointer":
                raise DecodeError("lfs_pointer", "a Git LFS pointer, not the file itself; run git lfs pull")
            if kind == "unknown":
                raise DecodeError("unknown_format", described(head))
            timing = image.probe_animation(file, max_pixels) if kind == "image" and animated == "clip" else None
            if timing is not None:
                examples = clips_of(source, timeline.VideoHeader(*timing, (1, 1000)), rule, seed)
            elif kind == "image":
                height, width = image.probe(file, max_pixels)
                source = _with_upright_boxes(source, file, height, width)
                examples = [Example(source, 0, example_id(source.key, 0), height, width)]
            else:
                header = timeline.probe(file, max_pixels)
                examples = clips_of(source, header, rule, seed, _extra(header))
    except DecodeError as error:
        return [reject(source.key, "probe", error.reason, error)]
    first = examples[0]
    pixels = first.source_height * first.source_width if isinstance(first, Example) else 0
    if isinstance(first, Example) and pixels > max_pixels:
        size = f"{first.source_height}x{first.source_width}"
        return [reject(source.key, "probe", "too_large", f"{size} is {pixels} pixels; --max-pixels is {max_pixels}")]
    return [*examples]


def _with_upright_boxes(source: Source, file: IO[bytes], height: int, width: int) -> Source:
    """Returns a source with its boxes as fractions of the upright image of (height, width) in px."""
    boxes = source.facts.boxes
    if not boxes:
        return source
    swap, rows, columns = image.turn(file)
    tall, wide = (width, height) if swap else (height, width)
    in_px = any(abs(number) > 1 for box in boxes for number in box)
    upright = []
    for x0, y0, x1, y1 in boxes:
        across, down = [(x / wide if in_px else x) for x in (x0, x1)], [(y / tall if in_px else y) for y in (y0, y1)]
        across, down = (down, across) if swap else (across, down)
        across = [1 - x for x in across] if columns < 0 else across
        down = [1 - y for y in down] if rows < 0 else down
        upright.append((min(across), min(down), max(across), max(down)))
    return source._replace(facts=source.facts._replace(boxes=tuple(upright)))


def clips_of(
    source: Source, header: timeline.VideoHeader, rule: ClipRule, seed: int, extra: str = ""
) -> list[Example | Reject]:
    """Returns the clips of a video, and after them a reject row if the video is damaged.

    Raises:
        DecodeError: no clip is whole, or the video is too slow.
    """
    examples: list[Example | Reject] = []
    for number in range(rule.num_clips):
        name = example_id(source.key, number)
        drawn = rule.placement == "random"
        words = [draw(seed, f"clip {name}", view) for view in range(rule.num_views)] if drawn else [None]
        views = [take_clip(header, rule, number, word) for word in words]
        if any(header.corrupt_frames.intersection(view.pts) for view in views):
            continue
        pts, entries, fps = views[0]
        example = Example(source, number, name, header.height, header.width, pts, header.time_base, entries, fps)
        examples.append(
            example._replace(
                extra=extra, views=tuple((view.pts, view.entries, view.fps) for view in views) if drawn else ()
            )
        )
    if header.damage:
        if not examples:
            raise DecodeError("broken", header.damage)
        whole = f"{len(examples)} of {rule.num_clips} clips are taken from what is whole"
        examples.append(reject(source.key, *PARTIAL_VIDEO, f"{header.damage}; {whole}"))
    return examples


def _extra(header: timeline.VideoHeader) -> str:
    """Returns what a segment records of a video besides its columns, as JSON."""
    matrix, tagged, full_range = header.colour
    facts = {
        "matrix": matrix,
        "matrix_from": "stream" if tagged else "size",
        "range": "full" if full_range else "limited",
    }
    aspect = header.pixel_aspect
    if aspect is not None and aspect > 0 and aspect != 1:
        facts["pixel_aspect"] = f"{aspect.numerator}:{aspect.denominator}"
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))
