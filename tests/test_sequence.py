"""The packed row: a sound one passes, every single kind of damage is refused with the row and the example named."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.schemas import FormatError, Layout, check_sequence, sequence_digest, sequence_schema
from patchpack.schemas.sequence import array_columns, rows_per_group

LAYOUT = Layout(sequence_length=12, max_segments=3, tubelet=(1, 2, 2))
Row = dict[str, Any]

# (grid, positions kept): the second segment has lost the token in its middle
WHOLE = ((1, 2, 2), [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)])
DROPPED = ((1, 1, 3), [(0, 0, 0), (0, 0, 2)])

FIRST = "shard row 3, segment 1, example id1 (photos/1.jpg): "
SECOND = "shard row 3, segment 2, example id2 (photos/2.jpg): "


def make_row(*segments: tuple[tuple[int, int, int], list[tuple[int, int, int]]]) -> Row:
    """Returns a row as the format describes it, written token by token."""
    row: Row = {
        "tokens": np.zeros((LAYOUT.sequence_length, LAYOUT.token_width), np.uint8),
        "segment_ids": np.zeros(LAYOUT.sequence_length, "<i2"),
        "positions": np.zeros((LAYOUT.sequence_length, 3), "<i2"),
        "segments": [],
    }
    place = 0
    for number, (grid, positions) in enumerate(segments, start=1):
        row["segments"].append(
            {
                "example_id": f"id{number}",
                "source": f"photos/{number}.jpg",
                "start": place,
                "num_tokens": len(positions),
                **dict(zip(("grid_t", "grid_h", "grid_w"), grid, strict=True)),
            }
        )
        for position in positions:
            row["tokens"][place] = 100 + place
            row["segment_ids"][place] = number
            row["positions"][place] = position
            place += 1
    lengths = [len(positions) for _, positions in segments]
    row |= {
        "num_tokens": place,
        "num_segments": len(segments),
        "max_segment_tokens": max(lengths, default=0),
        "attention_cost": sum(length**2 for length in lengths),
        "digest": joined_digest(row),
    }
    return row


def joined_digest(row: Row) -> int:
    """Returns the digest as the format words it: one hash over the three values joined."""
    return xxhash.xxh3_64_intdigest(b"".join(row[name].tobytes() for name in ("tokens", "segment_ids", "positions")))


@pytest.mark.parametrize(
    "segments",
    [(), (WHOLE,), (DROPPED,), (WHOLE, DROPPED), (WHOLE, WHOLE, WHOLE), (((3, 2, 2), [(2, 1, 1)]),)],
    ids=["empty", "one", "dropped", "two", "full", "one token of a clip"],
)
def test_a_sound_row_passes(segments: Any) -> None:
    row = make_row(*segments)
    kept = copy.deepcopy(row)
    check_sequence(row, LAYOUT, "shard row 3")
    assert all(np.array_equal(row[name], kept[name]) for name in kept), "the check changed the row"


def _count(column: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row[column] += 1

    return change


def _segment(number: int, **values: int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row["segments"][number - 1] |= values

    return change


def _cell(column: str, place: Any, value: int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row[column][place] = value

    return change


def _swap_positions(first: int, second: int) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row["positions"][[first, second]] = row["positions"][[second, first]]

    return change


def _same_length(row: Row) -> None:
    """Moves a token from one segment to the other without touching the arrays; the counts are made to agree."""
    row["segments"][0]["num_tokens"], row["segments"][1]["num_tokens"] = 3, 3
    row |= {"max_segment_tokens": 3, "attention_cost": 18}


def _no_tokens(row: Row) -> None:
    row["segments"][1]["num_tokens"] = 0
    row |= {"num_tokens": 4, "attention_cost": 16}


_AGREE = "they agree in a valid row; rebuild this shard"
_RASTER = "kept tokens keep (t, y, x) order; rebuild this shard"
DAMAGE: list[tuple[str, Callable[[Row], None], str]] = [
    ("token count", _count("num_tokens"), f"shard row 3: num_tokens is 7, the segments give 6; {_AGREE}"),
    ("segment count", _count("num_segments"), f"shard row 3: num_segments is 3, the segments give 2; {_AGREE}"),
    ("longest", _count("max_segment_tokens"), f"shard row 3: max_segment_tokens is 5, the segments give 4; {_AGREE}"),
    ("cost", _count("attention_cost"), f"shard row 3: attention_cost is 21, the segments give 20; {_AGREE}"),
    (
        "gap between segments",
        _segment(2, start=5),
        SECOND + "starts at token 5; segments follow each other from 0, so 4 was due; rebuild this shard",
    ),
    (
        "first start",
        _segment(1, start=1),
        FIRST + "starts at token 1; segments follow each other from 0, so 0 was due; rebuild this shard",
    ),
    (
        "empty segment",
        _no_tokens,
        SECOND + "0 tokens, grid (1, 1, 3); a segment has at least one token; rebuild this shard",
    ),
    (
        "empty grid",
        _segment(1, grid_w=0),
        FIRST + "4 tokens, grid (1, 2, 0); a segment has at least one token; rebuild this shard",
    ),
    (
        "segment id of padding inside a segment",
        _cell("segment_ids", 3, 0),
        FIRST + "segment_ids differ inside tokens 0 to 4; all of them are 1; rebuild this shard",
    ),
    (
        "segment id of a neighbour",
        _cell("segment_ids", 4, 1),
        SECOND + "segment_ids differ inside tokens 4 to 6; all of them are 2; rebuild this shard",
    ),
    (
        "boundary moved",
        _same_length,
        SECOND + "starts at token 4; segments follow each other from 0, so 3 was due; rebuild this shard",
    ),
    (
        "grid too small",
        _segment(1, grid_h=1),
        FIRST + "4 tokens on grid (1, 1, 2); a grid holds 2; rebuild this shard",
    ),
    (
        "another grid of that many tokens",
        _segment(1, grid_h=1, grid_w=4),
        FIRST + f"positions are not the raster of grid (1, 1, 4); {_RASTER}",
    ),
    (
        "positions swapped",
        _swap_positions(1, 2),
        FIRST + f"positions are not the raster of grid (1, 2, 2); {_RASTER}",
    ),
    (
        "dropped tokens out of order",
        _swap_positions(4, 5),
        SECOND + f"positions are not the raster of grid (1, 1, 3); {_RASTER}",
    ),
    (
        "a kept token twice",
        _cell("positions", 5, 0),
        SECOND + f"positions are not the raster of grid (1, 1, 3); {_RASTER}",
    ),
    (
        "a kept token off the grid",
        _cell("positions", (5, 2), 3),
        SECOND + f"positions are not the raster of grid (1, 1, 3); {_RASTER}",
    ),
    (
        "a negative position",
        _cell("positions", (4, 1), -1),
        SECOND + f"positions are not the raster of grid (1, 1, 3); {_RASTER}",
    ),
] + [
    (
        f"padding of {column}",
        _cell(column, place, 1),
        f"shard row 3: {column} of padding is not 0 at token {token}; padding holds 0; rebuild this shard",
    )
    for column, place, token in (("tokens", (11, 11), 11), ("segment_ids", 6, 6), ("positions", (8, 2), 8))
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*rest, id=name) for name, *rest in DAMAGE])
def test_every_kind_of_damage_is_refused(change: Callable[[Row], None], message: str) -> None:
    row = make_row(WHOLE, DROPPED)
    change(row)
    with pytest.raises(FormatError) as refused:
        check_sequence(row, LAYOUT, "shard row 3")
    assert str(refused.value) == message


def test_a_changed_pixel_is_refused_by_the_digest() -> None:
    row = make_row(WHOLE, DROPPED)
    row["tokens"][5, 11] ^= 1
    with pytest.raises(FormatError) as refused:
        check_sequence(row, LAYOUT, "shard row 3")
    assert str(refused.value) == (
        f"shard row 3: digest is {joined_digest(row):016x}, stored {row['digest']:016x}; "
        "tokens, segment_ids or positions changed; rebuild this shard"
    )


def test_more_segments_than_the_layout_allows_are_refused() -> None:
    row = make_row(*[((1, 1, 1), [(0, 0, 0)])] * 4)
    with pytest.raises(FormatError) as refused:
        check_sequence(row, LAYOUT, "shard row 3")
    assert str(refused.value) == "shard row 3: 4 segments; the layout's max_segments is 3; rebuild this shard"


def test_more_tokens_than_the_layout_allows_are_refused() -> None:
    row = make_row(WHOLE, DROPPED)
    row["segments"][1]["num_tokens"] = 9
    row |= {"num_tokens": 13, "max_segment_tokens": 9, "attention_cost": 16 + 81}
    with pytest.raises(FormatError) as refused:
        check_sequence(row, LAYOUT, "shard row 3")
    assert str(refused.value) == "shard row 3: 13 tokens; the layout's sequence_length is 12; rebuild this shard"


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_the_digest_is_one_hash_over_the_joined_bytes(length: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    row = {
        "tokens": generator.integers(0, 256, (length, width), np.uint8),
        "segment_ids": generator.integers(-(2**15), 2**15, length, "<i2"),
        # a view with gaps: what is hashed are the values, not the memory
        "positions": generator.integers(-(2**15), 2**15, (length, 6), "<i2")[:, ::2],
    }
    assert sequence_digest(row["tokens"], row["segment_ids"], row["positions"]) == joined_digest(row)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 3000), tubelet=st.tuples(st.integers(1, 4), st.integers(1, 32), st.integers(1, 32)))
def test_a_row_group_holds_as_many_sequences_as_fit_32_mib(length: int, tubelet: tuple[int, int, int]) -> None:
    layout = Layout(length, 1, tubelet)
    rows, row_bytes = rows_per_group(layout), length * layout.token_width
    assert 1 <= rows <= 1024
    assert rows == 1 or rows * row_bytes <= 32 * 2**20
    assert rows == 1024 or (rows + 1) * row_bytes > 32 * 2**20


def test_the_raw_columns_are_as_wide_as_their_arrays() -> None:
    schema = sequence_schema(LAYOUT)
    for name, (dtype, shape) in array_columns(LAYOUT).items():
        assert schema.field(name).type.byte_width == np.zeros(shape, dtype).nbytes
    assert not any(field.nullable for field in schema)
