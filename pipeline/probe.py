"""Stage 2: the header of each input, and so its examples: one image, or the clips of a video.

Images: the header alone. Videos: one demux pass. No picture is decoded here but a video's first frame.
"""

import io

import xxhash

from pipeline import files
from pipeline.media import SNIFF_BYTES, DecodeError, described, image, kind_of, video
from pipeline.records import Example, Outcome, Source, reject


def example_id(key: str, clip: int) -> str:
    """Returns the identity of an example: 32 hex digits of xxh3_128 over key, a zero byte and the clip number."""
    return xxhash.xxh3_128_hexdigest(f"{key}\0{clip}".encode())


def probe(
    source: Source,
    path: str,
    num_clips: int,
    num_frames: int,
    fps: float,
    max_pixels: int,
    max_bytes: int = 2**63 - 1,
) -> list[Outcome]:
    """Returns the examples of one input, or its reject.

    Args:
        source: as listed.
        path: where it is.
        num_clips: clips to take of a video.
        num_frames: frames in a clip.
        fps: frames a second in a clip.
        max_pixels: most pixels of a picture or frame.
        max_bytes: most bytes of a file; larger ones are not read.

    Raises:
        OSError: the storage failed in a way that may pass; not for missing or forbidden files.
    """
    try:
        with files.open_read(path) as file:
            size_bytes = file.seek(0, io.SEEK_END)
            if size_bytes > max_bytes:
                raise DecodeError("too_large", f"{size_bytes} bytes; --max-bytes is {max_bytes}")
            file.seek(0)
            head = file.read(SNIFF_BYTES)
            file.seek(0)
            kind = kind_of(head)
            if not head:
                raise DecodeError("empty", "0 bytes")
            if kind == "lfs_pointer":
                raise DecodeError("lfs_pointer", "a Git LFS pointer, not the file itself; run git lfs pull")
            if kind == "unknown":
                raise DecodeError("unknown_format", described(head))
            if kind == "image":
                height, width = image.probe(file)
                examples = [Example(source, 0, example_id(source.key, 0), height, width)]
            else:
                examples = _clips(source, video.probe(file, max_pixels), num_clips, num_frames, fps)
    except DecodeError as error:
        return [reject(source.key, "probe", error.reason, error)]
    except OSError as error:
        reason = files.lasting(error)
        if reason is None:
            raise
        detail = "listed, but not there when probed" if reason == "not_found" else error.strerror
        return [reject(source.key, "probe", reason, detail)]
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
