"""Whatever happens to a file of a dataset: the loader names it or reads what was stored, never anything else, and `verify` finds it.

`verify` hashes every file and so finds every byte. The loader reads what it needs: a byte that it does not look at (the header of a page whose
values it reads from their place, a name in the footer) changes nothing that it gives.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from patchpack.pipeline.verification.dataset import verify
from patchpack.schemas import FormatError
from patchpack.trainer.data import PackedShards

Read = list[dict[str, np.ndarray]]


def read(folder: Path) -> Read:
    batches = PackedShards(str(folder), batch_size=2, shuffle=False)
    return [{name: values.numpy() for name, values in batch.items()} for batch in batches]


def same(one: Read, other: Read) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def sound(packed: Path) -> Read:
    return read(packed)


def first_shard(folder: Path) -> Path:
    return min(folder.glob("sequences/*.parquet"))


def outcome(folder: Path, path: Path, sound: Read) -> str:
    """What the loader says: `named`, `harmless`, or what it should never be."""
    try:
        return "harmless" if same(read(folder), sound) else "WRONG DATA"
    except (FormatError, OSError) as error:
        message = str(error)
        is_named = path.name in message and "\n" not in message
        return "named" if is_named else f"NOT NAMED: {message}"


def places(path: Path) -> dict[str, list[int]]:
    """Some bytes of each part of a shard."""
    footer = pq.read_metadata(path)
    size = path.stat().st_size
    footer_bytes = int.from_bytes(path.read_bytes()[-8:-4], "little")
    found: dict[str, list[int]] = {}
    group = footer.row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        start, length = column.data_page_offset, column.total_compressed_size
        name = column.path_in_schema.split(".")[-1]
        if column.path_in_schema in ("tokens", "segment_ids", "positions"):
            found[f"header of {name}"] = [*range(start, start + 20, 3)]
            found[f"values of {name}"] = [start + length - 1 - step for step in range(0, length // 2, length // 12)]
        else:
            found[f"column {column.path_in_schema}"] = [start + step for step in range(0, length, max(1, length // 5))]
    end = size - 8 - footer_bytes
    found["footer"] = [*range(end, size - 8, footer_bytes // 60)]
    found["length and magic"] = [*range(size - 8, size)]
    found["first bytes"] = [*range(4)]
    return found


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.slow
def test_every_part_of_a_shard(own: Path, sound: Read) -> None:
    path = first_shard(own)
    content, parts = path.read_bytes(), places(path)
    assert len(parts) > 40
    named: dict[str, int] = {}
    for part, offsets in parts.items():
        for place in offsets:
            flipped(path, place)
            said = outcome(own, path, sound)
            assert said in ("named", "harmless"), (part, place, said)
            named[part] = named.get(part, 0) + (said == "named")
            path.write_bytes(content)
    for part, count in named.items():
        if part.startswith("values of") or part == "length and magic":
            # not one byte of what is trained on
            assert count == len(parts[part]), part
    assert named["footer"] > 10


@pytest.mark.slow
def test_verify_finds_a_byte_of_every_part(own: Path) -> None:
    path = first_shard(own)
    content = path.read_bytes()
    assert verify(str(own)) == []
    for part, offsets in places(path).items():
        flipped(path, offsets[len(offsets) // 2])
        found = verify(str(own))
        assert any(path.name in line for line in found), part
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet"])
@pytest.mark.slow_beyond(1)
def test_every_byte_of_the_tables(name: str, own: Path, sound: Read) -> None:
    path = own / name
    content = path.read_bytes()
    step = 3 if name == "manifest.json" else 11
    harmless = []
    for place in range(0, len(content), step):
        flipped(path, place)
        said = outcome(own, path, sound)
        assert said in ("named", "harmless") or "sequences/" in said or "no layout" in said, (place, said)
        if said == "harmless":
            harmless.append(place)
        path.write_bytes(content)
    if name == "manifest.json":
        # the name of the digest of the content, and white space
        start = content.index(b'"manifest_digest"')
        inside = [place for place in harmless if not start <= place < start + 20]
        assert all(content[place : place + 1].isspace() for place in inside), inside


@pytest.mark.parametrize("name", ["sequences", "manifest.json", "shards.parquet"])
def test_files_that_end_early(name: str, own: Path, sound: Read) -> None:
    path = first_shard(own) if name == "sequences" else own / name
    content = path.read_bytes()
    for number in range(20):
        path.write_bytes(content[: len(content) * number // 20])
        assert outcome(own, path, sound) == "named", number
        if number % 7 == 0:
            assert any(path.name in line for line in verify(str(own))), number
    path.unlink()
    with pytest.raises(FormatError):
        read(own)
    assert verify(str(own)) != []


def changes(own: Path, packed: Path) -> Iterator[tuple[str, Path]]:
    """Datasets whose files are whole, but not its own."""
    paths = sorted(own.glob("sequences/*.parquet"))
    one, other = paths[0], next(path for path in paths[1:] if path.stat().st_size != paths[0].stat().st_size)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1]), other.write_bytes(contents[0])
    yield "swapped", one
    one.write_bytes(contents[1]), other.write_bytes(contents[1])
    yield "one twice", one
    one.write_bytes(contents[0])
    foreign = own / "foreign.parquet"
    pq.write_table(pq.read_table(paths[0]), foreign)
    shutil.move(foreign, one)
    one.write_bytes(contents[0])
    os.truncate(one, 0)
    yield "empty", one


def test_files_of_others(own: Path, packed: Path) -> None:
    for what, path in changes(own, packed):
        with pytest.raises(FormatError, match=path.name):
            read(own)
        assert any(path.name in line for line in itertools.islice(verify(str(own)), 50)), what
