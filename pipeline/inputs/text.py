"""Captions to the token ids that a text tower reads: UTF-8 bytes, or a tokenizer of the `tokenizers` library."""

import functools
import os
from typing import TYPE_CHECKING

import xxhash

from patchpack.extras import MissingExtra
from patchpack.pipeline.storage import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokens_of(caption: str, captions: str, most: int) -> list[int]:
    """Returns a caption's token ids, those beyond `most` cut off.

    Args:
        caption: a text.
        captions: of --captions, "bytes" or the file of a tokenizer.
        most: tokens of one caption.
    """
    if captions == "bytes":
        return list(caption.encode()[:most])
    ids: list[int] = _tokenizer(captions, files.version(captions)).encode(caption).ids
    return ids[:most]


def described(captions: str) -> str:
    """Returns what the manifest says of --captions: of a file its name and the digest of its content.

    Raises:
        ValueError: there is no such file.
    """
    if captions in ("none", "bytes"):
        return captions
    return f"{os.path.basename(captions)} {xxhash.xxh3_128_hexdigest(_content(captions))}"


def _content(path: str) -> bytes:
    try:
        return files.read(path)
    except OSError as error:
        raise ValueError(
            f"--captions {path}: {error.strerror or error}; it is bytes, none, or a tokenizer's JSON file; check the path"
        ) from error


@functools.lru_cache(maxsize=4)
def _tokenizer(captions: str, version: tuple[int, int]) -> "Tokenizer":
    """Returns what makes token ids of a text, of a file's version.

    Raises:
        ValueError: the file is no tokenizer's.
        MissingExtra: the library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, "--captions FILE needs", "text") from error
    try:
        tokenizer = Tokenizer.from_str(_content(captions).decode())
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(
            f"--captions {captions}: no tokenizer ({error}); it is a JSON file of the tokenizers library; save one with "
            "tokenizer.save(FILE)"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
