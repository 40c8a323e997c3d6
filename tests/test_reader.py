"""What stands between storage and decoders: a file gives so many reads and no more."""

import io

import pytest

from patchpack.pipeline.media import DecodeError, reader
from patchpack.pipeline.media.reader import Reader


@pytest.mark.parametrize("size", [0, 64, 1000])
def test_a_file_gives_one_read_for_so_many_bytes_and_some_to_spare(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SPARE_READS", 3)
    one = Reader(io.BytesIO(b"x" * size))
    # 64 bytes a read
    for _ in range(3 + size // 64):
        one.read(1)
    assert one.error is None
    assert one.read(1) == b""
    assert isinstance(one.error, DecodeError) and "too many parts" in str(one.error)


def test_all_reads_together_give_so_many_bytes() -> None:
    one = Reader(io.BytesIO(b"x" * 100), max_bytes=10)
    assert one.read(6) == b"x" * 6
    one.seek(0)
    assert one.read(4) == b"x" * 4 and one.error is None
    assert one.read(1) == b"" and "overlap" in str(one.error)
