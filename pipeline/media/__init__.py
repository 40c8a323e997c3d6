"""Bytes to frames to tokens. Errors of the content are DecodeErrors; errors of the storage stay what they are.

In order: `sniff` (what a file is), `reader` (between storage and decoders), `image` and `video` (to frames at their
planned size, by `resize`), `shared_clips` (clips of one video share a decode), `patchify` (frames to tokens).
"""

from patchpack.pipeline.media.errors import DecodeError
from patchpack.pipeline.media.sniff import SNIFF_BYTES, described, kind_of

__all__ = ["SNIFF_BYTES", "DecodeError", "described", "kind_of"]
