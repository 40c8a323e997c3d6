"""Stage 2: the header of each input, and so its examples: one image, or the clips of a video.

Images: the header alone. Videos: one demux pass. No picture is decoded here but a video's first frame.
"""

import errno
import json

import xxhash

from pipeline import files
from pipeline.media import SNIFF_BYTES, DecodeError, image, kind_of, timeline
from pipeline.media.clips import ClipRule, take_clip
from pipeline.records import Example, Outcome, Source, reject
from pipeline.sample import draw


def example_id(key: str, clip: int) -> str:
    """Returns the identity of an example: 32 hex digits of xxh3_128 over key, a zero byte and the clip number."""
    return xxhash.xxh3_128_hexdigest(f"{key}\0{clip}".encode())


def probe(source: Source, path: str, rule: ClipRule, max_pixels: int, seed: int = 0) -> list[Outcome]:
    """Returns the examples of one input, or its reject.

    Args:
        source: as listed.
        path: where it is.
        rule: how clips are taken of a video.
        max_pixels: most pixels of a picture or frame.
        seed: of the build.

    Raises:
        OSError: the storage failed in a way that may pass; not for missing or forbidden files.
    """
    try:
        with files.open_read(path) as file:
            head = file.read(SNIFF_BYTES)
            if not head:
                return [reject(source.key, "probe", "empty", "0 bytes")]
            file.seek(0)
            kind = kind_of(head)
            if kind == "unknown":
                return [reject(source.key, "probe", "unknown_format", f"begins with {head[:12]!r}")]
            if kind == "image":
                height, width = image.probe(file)
                examples = [Example(source, 0, example_id(source.key, 0), height, width)]
            else:
                examples = clips_of(source, timeline.probe(file), rule, seed)
    except DecodeError as error:
        return [reject(source.key, "probe", error.reason, error)]
    except (FileNotFoundError, NotADirectoryError):
        return [reject(source.key, "probe", "not_found", "listed, but not there when probed")]
    except (files.NotRegularError, IsADirectoryError) as error:
        return [reject(source.key, "probe", "not_a_file", error.strerror)]
    except OSError as error:
        # a link that leads to itself fails for good, unlike other errors of storage
        if not isinstance(error, PermissionError) and error.errno != errno.ELOOP:
            raise
        return [reject(source.key, "probe", "unreadable", error.strerror)]
    pixels = examples[0].source_height * examples[0].source_width
    if pixels > max_pixels:
        size = f"{examples[0].source_height}x{examples[0].source_width}"
        return [reject(source.key, "probe", "too_large", f"{size} is {pixels} pixels; --max-pixels is {max_pixels}")]
    return examples


def clips_of(source: Source, header: timeline.VideoHeader, rule: ClipRule, seed: int) -> list[Outcome]:
    """Returns the clips of a video, and after them a reject row if the video is damaged.

    Raises:
        DecodeError: no clip is whole, or the video is too slow.
    """
    examples: list[Outcome] = []
    for number in range(rule.num_clips):
        name = example_id(source.key, number)
        drawn = rule.placement == "random"
        words = [draw(seed, f"clip {name}", view) for view in range(rule.num_views)] if drawn else [None]
        views = [take_clip(header, rule, number, word) for word in words]
        if any(header.holes.intersection(view.pts) for view in views):
            continue
        pts, entries, fps = views[0]
        example = Example(source, number, name, header.height, header.width, pts, header.time_base, entries, fps)
        examples.append(example._replace(extra=_extra(header), views=tuple(map(tuple, views)) if drawn else ()))
    if header.damage:
        if not examples:
            raise DecodeError("broken", header.damage)
        whole = f"{len(examples)} of {rule.num_clips} clips are taken from what is whole"
        examples.append(reject(source.key, "probe", "partial", f"{header.damage}; {whole}"))
    return examples


def _extra(header: timeline.VideoHeader) -> str:
    """Returns what a segment records of a video besides its columns, as JSON."""
    matrix, tagged, full_range = header.colour
    told = {
        "matrix": matrix,
        "matrix_from": "stream" if tagged else "size",
        "range": "full" if full_range else "limited",
    }
    aspect = header.pixel_aspect
    if aspect is not None and aspect > 0 and aspect != 1:
        told["pixel_aspect"] = f"{aspect.numerator}:{aspect.denominator}"
    return json.dumps(told, sort_keys=True, separators=(",", ":"))
