"""HEIC images, through the extra `heif` (pillow-heif); without it they are rejects that name it."""

import functools

from patchpack.extras import install
from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.reader import Reader
from patchpack.pipeline.media.sniff import SNIFF_BYTES, is_heif


def formats(reader: Reader) -> tuple[str, ...]:
    """Returns the format that Pillow must know besides its own to open a file: HEIF where it is one.

    Raises:
        DecodeError: it is one, and the extra is not installed.
    """
    head = reader.read(SNIFF_BYTES)
    reader.seek(0)
    if not is_heif(head):
        return ()
    try:
        _register()
    except ImportError as error:
        raise DecodeError("unknown_format", f"a HEIC image, which needs the extra heif; {install('heif')}") from error
    return ("HEIF",)


@functools.cache
def _register() -> None:
    import pillow_heif

    # one thread: workers already use every core. Thumbnails and depth maps are not asked for
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
