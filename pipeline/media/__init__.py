"""Stage 6: bytes to frames. Errors of the content are DecodeErrors; errors of the storage stay what they are."""

from pipeline.media.errors import DecodeError
from pipeline.media.sniff import SNIFF_BYTES, described, kind_of

__all__ = ["SNIFF_BYTES", "DecodeError", "described", "kind_of"]
