"""Stage 2: the header of each input, and so its examples: one image, or the clips of a video.

Images: the header alone. Videos: one demux pass. No picture is decoded here but a video's first frame.
"""

import errno

import xxhash

from pipeline import files
from pipeline.media import SNIFF_BYTES, DecodeError, image, kind_of, video
from pipeline.records import Example, Outcome, Source, reject


def example_id(key: str, clip: int) -> str:
    """Returns the identity of an example: 32 hex digits of xxh3_128 over key, a zero byte and the clip number."""
    return xxhash.xxh3_128_hexdigest(f"{key}\0{clip}".encode())


def probe(
    source: Source, path: str, num_clips: int, num_frames: int, fps: float, max_pixels: int, animated: str = "first"
) -> list[Outcome]:
    """Returns the examples of one input, or its reject.

    Args:
        source: as listed.
        path: where it is.
        num_clips: clips to take of a video.
        num_frames: frames in a clip.
        fps: frames a second in a clip.
        max_pixels: most pixels of a picture or frame.
        animated: "clip" to make clips of animated pictures, too.

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
            timing = image.probe_animation(file, max_pixels) if kind == "image" and animated == "clip" else None
            if timing is not None:
                header = video.VideoHeader(*timing, (1, 1000))
                examples = _clips(source, header, num_clips, num_frames, fps)
            elif kind == "image":
                height, width = image.probe(file, max_pixels)
                examples = [Example(source, 0, example_id(source.key, 0), height, width)]
            else:
                examples = _clips(source, video.probe(file), num_clips, num_frames, fps)
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


def _clips(source: Source, header: video.VideoHeader, num_clips: int, num_frames: int, fps: float) -> list[Example]:
    return [
        Example(
            source,
            clip,
            example_id(source.key, clip),
            header.height,
            header.width,
            video.clip_times(header, clip, num_clips, num_frames, fps),
            header.time_base,
        )
        for clip in range(num_clips)
    ]
