"""Encoded tokens: by the rule of docs/format.md, the same bytes again, and one line for whatever is no frame of them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_readme import block

import patchpack
from patchpack import PackedShards, pack_arrays
from patchpack.schemas import FormatError, Layout, Shard, manifest, read_manifest
from patchpack.schemas.codec import decode, encode, most_bytes
from patchpack.schemas.geometry import GRADIENT_ZSTD

Run = Callable[..., Result]
MAGIC = b"\x28\xb5\x2f\xfd"
RAW = ("tokens", "segment_ids", "positions")
# images of a few colours and noise, so that borders of all kinds occur
LAYOUT = Layout(12, 3, (2, 4, 4), codec=GRADIENT_ZSTD)
OTHERS: dict[str, dict[str, Any]] = {
    "compressed": {"compression": "zstd"},
    "many pages": {"compression": "none", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 1},
    "another row group": {"compression": "none", "use_dictionary": False, "row_group_size": 2},
    "dictionary": {"compression": "none", "use_dictionary": True},
    "pages of the second kind": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    "pyarrow's defaults": {},
}


def drawn_tokens(layout: Layout, seed: int, levels: int = 256) -> np.ndarray:
    """Returns (L, P) uint8 of so many levels, whose last quarter is padding."""
    tokens = np.random.default_rng(seed).integers(0, levels, (layout.sequence_length, layout.token_width))
    tokens[len(tokens) - len(tokens) // 4 :] = 0
    return tokens.astype(np.uint8)


def slow_content(tokens: np.ndarray, layout: Layout) -> bytes:
    """Returns what the frame of tokens holds, value by value, by the words of docs/format.md."""
    depth, height, width = layout.tubelet
    channels = layout.channels

    def pixel(n: int, t: int, y: int, x: int, c: int) -> int:
        return int(tokens[n, ((t * height + y) * width + x) * channels + c])

    def colour(n: int, t: int, y: int, x: int, c: int) -> int:
        return pixel(n, t, y, x, c) - (pixel(n, t, y, x, 1) if channels == 3 and c != 1 else 0)

    def in_frame(n: int, t: int, y: int, x: int, c: int) -> int:
        if y:
            return colour(n, t, y, x, c) - colour(n, t, y - 1, x, c)
        return colour(n, t, y, x, c) - (colour(n, t, y, x - 1, c) if x else 0)

    return bytes(
        (in_frame(n, t, y, x, c) - (in_frame(n, t - 1, y, x, c) if t else 0)) % 256
        for t in range(depth)
        for y in range(height)
        for n in range(layout.sequence_length)
        for x in range(width)
        for c in range(channels)
    )


def decoded(frame: bytes, layout: Layout) -> np.ndarray:
    """Returns a frame's tokens, in memory that held something else before."""
    out = np.full((layout.sequence_length, layout.token_width), 77, np.uint8)
    decode(frame, layout, out, "a.parquet row 3")
    return out


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 20),
    tubelet=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 99),
)
def test_a_frame_is_what_the_format_says_and_decodes_to_the_same_tokens(
    length: int, tubelet: tuple[int, int, int], channels: int, levels: int, seed: int
) -> None:
    layout = Layout(length, 3, tubelet, channels=channels, codec=GRADIENT_ZSTD)
    tokens = drawn_tokens(layout, seed, levels)
    before = tokens.copy()
    frame = encode(tokens, layout)
    assert np.array_equal(tokens, before)
    assert pa.decompress(frame, tokens.nbytes, "zstd").to_pybytes() == slow_content(tokens, layout)
    assert np.array_equal(decoded(frame, layout), tokens)
    assert len(frame) <= most_bytes(layout)


@pytest.mark.parametrize("length", [1, 85, 86, 170, 1000])
def test_frames_of_every_width_of_size_are_read(length: int) -> None:
    # a size below 256 stands in one byte, below 65,792 in two
    layout = Layout(length, 3, (1, 1, 1), codec=GRADIENT_ZSTD)
    for tokens in (drawn_tokens(layout, 0), np.zeros((length, 3), np.uint8)):
        assert np.array_equal(decoded(encode(tokens, layout), layout), tokens)
    large = Layout(256 * length, 3, (1, 4, 4), codec=GRADIENT_ZSTD)
    tokens = drawn_tokens(large, 0)
    assert np.array_equal(decoded(encode(tokens, large), large), tokens)


def test_noise_grows_by_a_few_bytes_and_padding_is_free() -> None:
    layout = Layout(1024, 64, (1, 16, 16), codec=GRADIENT_ZSTD)
    noise = np.random.default_rng(0).integers(0, 256, (1024, 768), np.uint8)
    assert 0 < len(encode(noise, layout)) - noise.nbytes < 100
    assert len(encode(np.zeros_like(noise), layout)) < 100
    half = noise.copy()
    half[512:] = 0
    assert len(encode(half, layout)) < 0.51 * noise.nbytes


def test_no_flipped_bit_of_a_frame_is_more_than_an_error_or_other_tokens() -> None:
    tokens = drawn_tokens(LAYOUT, 1, levels=5)
    frame = encode(tokens, LAYOUT)
    refused = 0
    for place in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert decoded(bytes(flipped), LAYOUT).shape == tokens.shape
        except FormatError as error:
            refused += 1
            assert str(error).startswith("a.parquet row 3: tokens ") and "\n" not in str(error)
            assert str(error).endswith("; rebuild or copy again this shard")
    assert refused > 30


def with_size(frame: bytes, size: int) -> bytes:
    """Returns a frame that claims another size, in four bytes."""
    assert frame[4] == 0x60, "one segment, whose size stands in two bytes"
    return MAGIC + b"\xa0" + size.to_bytes(4, "little") + frame[7:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: b"", "no zstd frame that states its size; the layout has 1152 a sequence"),
        (lambda frame: frame[:6], "no zstd frame that states its size; the layout has 1152 a sequence"),
        (lambda frame: b"1" + frame, "no zstd frame that states its size; the layout has 1152 a sequence"),
        (
            lambda frame: MAGIC + b"\x00\x58" + frame[7:],
            "no zstd frame that states its size; the layout has 1152 a sequence",
        ),
        (lambda frame: with_size(frame, 4_000_000_000), "a zstd frame of 4000000000 bytes; the layout has 1152"),
        (lambda frame: with_size(frame, 1151), "a zstd frame of 1151 bytes; the layout has 1152"),
        (lambda frame: frame[:-1], "cannot be decompressed ("),
        (lambda frame: frame + b"\x00", "cannot be decompressed ("),
        (lambda frame: frame + frame, "cannot be decompressed ("),
        (lambda frame: with_size(pa.compress(bytes(1000), "zstd", asbytes=True), 1152), "cannot be decompressed ("),
        (lambda frame: with_size(pa.compress(bytes(2000), "zstd", asbytes=True), 1152), "cannot be decompressed ("),
    ],
)
def test_what_is_no_frame_of_a_sequence_is_one_line(change: Callable[[bytes], bytes], message: str) -> None:
    frame = change(encode(drawn_tokens(LAYOUT, 1), LAYOUT))
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    with pytest.raises(FormatError) as refused:
        decoded(frame, LAYOUT)
    assert str(refused.value).startswith(f"a.parquet row 3: tokens {'are ' * (message[0] in 'na')}{message}")
    assert "\n" not in str(refused.value) and pool.bytes_allocated() == before


def examples(count: int = 40) -> list[tuple[str, np.ndarray, tuple[int, int, int]]]:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 13, count).tolist()
    return [
        (f"k{n}", rng.integers(0, 9, (size, LAYOUT.token_width), np.uint8), (1, 1, size))
        for n, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two datasets: the same tokens as they are, and encoded."""
    folder = tmp_path_factory.mktemp("pair")
    for name, codec in (("raw", "none"), ("encoded", GRADIENT_ZSTD)):
        pack_arrays(examples(), folder / name, Layout(12, 3, (2, 4, 4), codec=codec))
    return folder


@pytest.fixture
def pair(written: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of them to damage."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "raw", tmp_path / "encoded"


def only_shard(folder: Path) -> Path:
    (path,) = (folder / "sequences").iterdir()
    return path


def table_of(path: Path) -> pa.Table:
    """Returns a shard's table with its own record, which pyarrow leaves behind where it rewrites a file."""
    return pq.read_table(path).replace_schema_metadata({"patchpack": pq.read_metadata(path).metadata[b"patchpack"]})


def check_equal(one: Shard, other: Shard) -> None:
    """Checks that two shards hold the same arrays and digests."""
    assert one.num_sequences == other.num_sequences > 10
    for row in sorted(range(one.num_sequences), key=lambda row: row * 7 % 11):
        arrays = {name: np.full_like(one.read_array(name, row), 9) for name in RAW}
        other.read_into(row, arrays)
        for name in RAW:
            array = other.read_array(name, row)
            assert not array.flags.writeable
            assert np.array_equal(one.read_array(name, row), array) and np.array_equal(array, arrays[name])
    assert one.read_metadata(["digest"]) == other.read_metadata(["digest"])


def test_an_encoded_dataset_is_the_raw_one_in_fewer_bytes(pair: tuple[Path, Path]) -> None:
    raw, encoded = pair
    assert patchpack.verify(encoded) == []
    with Shard(str(only_shard(raw))) as one, Shard(str(only_shard(encoded))) as other:
        check_equal(one, other)
        assert (one.metadata["requires"], other.metadata["requires"]) == ([], ["codec"])
    assert json.loads((encoded / "manifest.json").read_text())["requires"] == ["codec"]
    assert "codec" not in json.loads((raw / "manifest.json").read_text())["layouts"][0]
    sizes = [only_shard(folder).stat().st_size for folder in pair]
    reported = [patchpack.report(folder)["totals"]["stored"]["bytes"] for folder in pair]
    assert reported == sizes and sizes[1] < 0.9 * sizes[0]
    # what the format says of places
    content = only_shard(encoded).read_bytes()
    table = pq.read_table(only_shard(encoded))
    assert table.schema.field("tokens").type == pa.binary()
    with Shard(str(only_shard(encoded))) as shard:
        for row, (frame, length) in enumerate(zip(table["tokens"], table["tokens_bytes"], strict=True)):
            place = shard.places(row)[0]
            assert place is not None and length.as_py() == len(frame.as_py())
            assert content[place - 4 : place] == length.as_py().to_bytes(4, "little")
            assert content[place : place + length.as_py()] == frame.as_py()


def test_batches_of_an_encoded_dataset_are_those_of_the_raw_one(pair: tuple[Path, Path]) -> None:
    batches = [list(PackedShards(str(folder), batch_size=4, shuffle=False, num_threads=3)) for folder in pair]
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)


@pytest.mark.parametrize("kind", sorted(OTHERS))
@pytest.mark.parametrize("is_large", [False, True])
def test_an_encoded_shard_that_another_writer_rewrote_reads_the_same(
    pair: tuple[Path, Path], kind: str, is_large: bool
) -> None:
    path = only_shard(pair[1])
    table = table_of(path)
    if is_large:
        table = table.set_column(0, "tokens", table["tokens"].cast(pa.large_binary()))
    pq.write_table(table, path, **OTHERS[kind])
    with Shard(str(only_shard(pair[0]))) as one, Shard(str(path)) as other:
        check_equal(one, other)
        if kind == "compressed":
            assert other.places(0)[0] is None


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as refused, Shard(str(path)) as shard:
        for row in range(shard.num_sequences):
            shard.read_array("tokens", row)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_broken_frame_in_a_shard_names_file_and_row(pair: tuple[Path, Path]) -> None:
    path = only_shard(pair[1])
    with Shard(str(path)) as shard:
        place = shard.places(2)[0]
    assert place is not None
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} row 2: tokens are no zstd frame that states its size; ")
    assert any(problem.startswith(f"{path} row 2: tokens are no zstd frame") for problem in patchpack.verify(pair[1]))
    with pytest.raises(FormatError, match=r"row 2: tokens are no zstd frame"):
        list(PackedShards(str(pair[1]), batch_size=4))
    # the last byte of a frame is in its stream of bits: other tokens, or none
    content[place] ^= 1
    content[place + 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"row 2: (digest is|tokens cannot be decompressed)"):
        list(PackedShards(str(pair[1]), batch_size=4))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, "row 1: tokens_bytes is 0; a frame has 1 to "),
        (-5, "row 1: tokens_bytes is -5; a frame has 1 to "),
        (2**31 - 1, "row 1: tokens_bytes is 2147483647; a frame has 1 to "),
    ],
)
def test_lengths_that_no_frame_has_are_refused(pair: tuple[Path, Path], length: int, message: str) -> None:
    path = only_shard(pair[1])
    table = table_of(path)
    lengths = table["tokens_bytes"].to_pylist()
    lengths[1] = length
    number = table.column_names.index("tokens_bytes")
    field = table.schema.field(number)
    pq.write_table(table.set_column(number, field, pa.array(lengths, pa.int32())), path, compression="none")
    assert refusal(path).startswith(f"{path} {message}")


def test_lengths_that_contradict_each_other_do_no_harm(pair: tuple[Path, Path]) -> None:
    # their sum is right, so the place of the second frame is not
    path = only_shard(pair[1])
    table = table_of(path)
    lengths = table["tokens_bytes"].to_pylist()
    lengths[0], lengths[1] = lengths[0] + 3, lengths[1] - 3
    number = table.column_names.index("tokens_bytes")
    table = table.set_column(number, table.schema.field(number), pa.array(lengths, pa.int32()))
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    assert refusal(path).startswith(f"{path} row 0: tokens cannot be decompressed (")


@pytest.mark.parametrize("column", ["tokens", "tokens_bytes"])
def test_a_column_that_is_not_there_is_named(pair: tuple[Path, Path], column: str) -> None:
    path = only_shard(pair[1])
    pq.write_table(table_of(path).drop_columns([column]), path)
    assert f"column {column} is missing; its layout needs " in refusal(path)


def test_layouts_say_their_codec_and_refuse_what_cannot_be(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Layout.from_json(LAYOUT.to_json(), "here") == LAYOUT and LAYOUT.features == ["codec"]
    with pytest.raises(ValueError, match=r"^codec zip: no such codec; it is none or gradient-zstd; correct it"):
        Layout(4, 2, (1, 1, 1), codec="zip")
    with pytest.raises(ValueError, match=r"^codec gradient-zstd: tokens are float16; it takes .* uint8; leave it out"):
        Layout(4, 2, (1, 1, 1), token_dtype="float16", codec=GRADIENT_ZSTD)
    for codec in ("zip", ["none"]):
        with pytest.raises(FormatError) as refused:
            Layout.from_json({**LAYOUT.to_json(), "codec": codec}, "here")  # type: ignore[typeddict-item]
        assert str(refused.value) == (
            f"here: codec {codec!r}; this reader knows none, gradient-zstd; upgrade patchpack"
        )
    # a reader of before
    monkeypatch.setattr(manifest, "UNDERSTOOD", frozenset({"text"}))
    with pytest.raises(FormatError, match="requires codec; this reader has no such feature; upgrade patchpack"):
        read_manifest(str(pair[1]))
    assert "requires codec; this reader has no such feature" in refusal(only_shard(pair[1]))


def test_a_sequence_larger_than_what_is_ever_written_is_refused(pair: tuple[Path, Path]) -> None:
    path = only_shard(pair[1])
    table = table_of(path)
    own = json.loads(table.schema.metadata[b"patchpack"])
    own["layout"] |= {"tubelet": [1, 4096, 4096], "stride": [1, 4096, 4096], "token_width": 3 * 2**24}
    pq.write_table(table.replace_schema_metadata({"patchpack": json.dumps(own)}), path)
    assert refusal(path).startswith(f"{path}: 603979776 bytes a sequence; at most 268435455 are decoded; ")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    for number in range(9):
        slope = np.linspace((0, 90, 200), (250, 30, 10), 140 * (90 + 20 * number)).reshape(140, -1, 3)
        Image.fromarray(slope.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_build_encodes_resumes_and_shows_it(run: Run, photos: Path, tmp_path: Path) -> None:
    options = ("--workers", 1, "--media-backend", "pillow", "--sequence-length", 128, "--shard-bytes", 100_000)
    outputs = {}
    for codec in ("none", GRADIENT_ZSTD):
        outputs[codec] = tmp_path / codec
        assert run("build", photos, "--output", outputs[codec], "--codec", codec, *options).code == 0
        assert run("verify", outputs[codec]).code == 0
    raw, encoded = outputs.values()
    tables = [pq.read_table(folder / "shards.parquet") for folder in (raw, encoded)]
    assert tables[0]["path"] == tables[1]["path"] and len(tables[0]) > 1
    assert not set(tables[0]["fingerprint"].to_pylist()) & set(tables[1]["fingerprint"].to_pylist())
    for name in tables[0]["path"].to_pylist():
        columns = [pq.read_table(folder / name, columns=["digest", "segments"]) for folder in (raw, encoded)]
        assert columns[0] == columns[1]
    assert sum(tables[1]["bytes"].to_pylist()) < 0.5 * sum(tables[0]["bytes"].to_pylist())
    shown = [run("inspect", folder, 1) for folder in (raw, encoded)]
    assert shown[0].code == shown[1].code == 0 and "digest" in shown[1].out
    # a shard that is gone is written again as it was
    before = {path.name: path.read_bytes() for path in (encoded / "sequences").iterdir()}
    (encoded / "manifest.json").unlink()
    sorted((encoded / "sequences").iterdir())[0].unlink()
    assert run("build", "--output", encoded, "--resume").code == 0
    assert {path.name: path.read_bytes() for path in (encoded / "sequences").iterdir()} == before
    for codec, shown_size in (("none", r"about \d+ MB\n"), (GRADIENT_ZSTD, r"about \d+ MB before gradient-zstd\n")):
        assert re.search(shown_size, run("plan", photos, "--codec", codec, *options).out)
    refused = run("build", photos, "--output", tmp_path / "x", "--codec", "gradient-zst", *options)
    assert refused.code == 2 and "gradient-zstd" in refused.err


def test_the_documented_snippet_decodes_a_shard_without_our_code(pair: tuple[Path, Path]) -> None:
    scope: dict[str, Any] = {"path": only_shard(pair[1])}
    exec(block("docs/format.md", "read-an-encoded-shard"), scope)
    with Shard(str(only_shard(pair[0]))) as shard:
        expected = np.stack([shard.read_array("tokens", row) for row in range(shard.num_sequences)])
    assert np.array_equal(scope["tokens"], expected) and len(expected) > 10
