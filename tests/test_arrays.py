"""Tokens of one's own: every token lands once, where it says, and the dataset is one like any other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchpack
from patchpack import Layout, PackedShards, ShardWriter, pack_arrays
from patchpack.pipeline.report.html import render_html

# codes of a tokenizer: one int32 a token
LAYOUT = Layout(16, 3, (1, 1, 1), channels=1, token_dtype="int32")
EXAMPLE = np.arange(6, dtype=np.int32).reshape(6, 1)

grids = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4))


def stored(folder: Path) -> dict[str, tuple[list[int], list[list[int]], dict[str, Any]]]:
    """Returns tokens, positions and segment of each example, the slow way, by its key."""
    examples = {}
    for path in sorted((folder / "sequences").glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            tokens = np.frombuffer(row["tokens"], np.int32)
            ids = np.frombuffer(row["segment_ids"], np.int16)
            positions = np.frombuffer(row["positions"], np.int16).reshape(-1, 3)
            for number, segment in enumerate(row["segments"], start=1):
                mine = ids == number
                assert segment["source"] not in examples
                examples[segment["source"]] = tokens[mine].tolist(), positions[mine].tolist(), segment
    return examples


@settings(max_examples=12, deadline=None)
@given(chosen=st.lists(grids, max_size=30), group_size=st.integers(1, 12), data=st.data())
def test_every_token_lands_once_where_it_says(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, int, int]], group_size: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("arrays") / "set"
    expected = {}
    # where segments may start anywhere, and where they may not
    layout = dataclasses.replace(LAYOUT, align_tokens=data.draw(st.sampled_from([1, 4])))
    with ShardWriter(folder, layout, classes=["a", "b"], group_size=group_size, shard_bytes=500) as writer:
        for number, grid in enumerate(chosen):
            cells = [[t, y, x] for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
            kept = sorted(data.draw(st.sets(st.sampled_from(range(len(cells))), min_size=1)))
            whole = len(kept) == len(cells)
            positions = [cells[place] for place in kept]
            tokens = np.array([[1000 * number + place] for place in kept], np.int32)
            given = None if whole else np.array(positions)
            writer.add(
                tokens, grid, key=f"k{number}", positions_N3=given, labels=[number % 2], captions=["c"], weight=0.5
            )
            tokens[:] = -1  # the caller's array is the caller's
            expected[f"k{number}"] = ([1000 * number + place for place in kept], positions, len(kept) / len(cells))
    found = stored(folder)
    assert {key: (tokens, positions) for key, (tokens, positions, _) in found.items()} == {
        key: (tokens, positions) for key, (tokens, positions, _) in expected.items()
    }
    for key, (_, _, segment) in found.items():
        assert segment["kept_fraction"] == pytest.approx(expected[key][2])
        assert (segment["labels"], segment["captions"], segment["weight"]) == ([int(key[1:]) % 2], ["c"], 0.5)
    assert patchpack.verify(folder) == []
    assert writer.report == patchpack.report(folder)
    assert writer.report is not None and writer.report["totals"]["num_inputs"] == len(chosen)


def test_it_is_packed_as_well_as_any_dataset_and_shown_and_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [
        (f"doc/{n}", rng.integers(0, 9, (size, 1), dtype=np.int32), (1, 1, int(size)))
        for n, size in enumerate(rng.integers(1, 13, 200))
    ]
    report = pack_arrays(examples, tmp_path / "set", LAYOUT, labels={"doc/3": 1}, classes=["none", "one"])
    [bound] = report["bounds"]
    assert bound["proven_optimal"] and report["efficiency"]["efficiency"] > 0.9
    assert "Made to fit" not in render_html(report)
    batches = list(PackedShards(str(tmp_path / "set"), batch_size=4, shuffle=False))
    assert batches[0]["tokens"].shape == (4, 16, 1) and batches[0]["tokens"].dtype.itemsize == 4
    assert sum(int((batch["segment_ids"] > 0).sum()) for batch in batches) == sum(
        len(tokens) for _, tokens, _ in examples
    )
    assert sum(int((batch["labels"] == 1).sum()) for batch in batches) == 1


def test_groups_need_no_more_sequences_than_one(tmp_path: Path) -> None:
    for group_size in (4, 40):
        with ShardWriter(tmp_path / str(group_size), LAYOUT, group_size=group_size) as writer:
            for number in range(20):  # three of five tokens in a sequence of 16, and four to a group
                writer.add(np.arange(5, dtype=np.int32).reshape(5, 1), (1, 1, 5), key=f"{number}")
        assert writer.report is not None
        assert writer.report["bounds"][0]["num_sequences"] == 7


def test_equal_calls_give_equal_bytes_and_another_seed_another_order(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> str:
        examples = [(str(n), EXAMPLE[: 1 + n % 6], (1, 1, 1 + n % 6)) for n in range(60)]
        return pack_arrays(examples, tmp_path / name, LAYOUT, seed=seed)["dataset_digest"]

    assert written("a", 0) == written("b", 0) != written("c", 1)


def test_an_exception_leaves_the_dataset_unfinished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path / "set", LAYOUT) as writer:
        writer.add(EXAMPLE, (1, 2, 3), key="a")
        raise KeyError("mine")
    assert not (tmp_path / "set" / "manifest.json").exists()
    with pytest.raises(patchpack.FormatError):
        patchpack.report(tmp_path / "set")


def test_floats_are_tokens_too(tmp_path: Path) -> None:
    layout = Layout(4, 2, (1, 1, 1), channels=5, token_dtype="float32")
    values = np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)
    pack_arrays([("x", values, (1, 1, 2))], tmp_path / "set", layout)
    [batch] = PackedShards(str(tmp_path / "set"), batch_size=1)
    assert batch["tokens"][0, :2].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (
            lambda w: w.add(EXAMPLE.astype(np.int64), (1, 2, 3), key="x"),
            "x: int64 (6, 1); the layout takes int32 (N, 1)",
        ),
        (lambda w: w.add(EXAMPLE.ravel(), (1, 2, 3), key="x"), "x: int32 (6,); the layout takes int32 (N, 1)"),
        (lambda w: w.add(EXAMPLE, (1, 2, 2), key="x"), "x: 6 tokens on grid (1, 2, 2), which holds 4"),
        (lambda w: w.add(EXAMPLE[:0], (1, 1, 1), key="x"), "x: 0 tokens; an example has 1 to 16"),
        (lambda w: w.add(np.zeros((17, 1), np.int32), (1, 1, 17), key="x"), "x: 17 tokens; an example has 1 to 16"),
        (
            lambda w: w.add(EXAMPLE[:2], (1, 2, 3), key="x", positions_N3=np.array([[0, 1, 0], [0, 0, 0]])),
            "x: positions_N3 of shape (2, 3) are no rising cells of grid (1, 2, 3)",
        ),
        (
            lambda w: w.add(EXAMPLE[:1], (1, 2, 3), key="x", positions_N3=np.array([[0, 2, 0]])),
            "x: positions_N3 of shape (1, 3) are no rising cells of grid (1, 2, 3)",
        ),
        (lambda w: w.add(EXAMPLE, (1, 2, 3), key="a"), "a: added twice; keys are unique"),
        (lambda w: w.add(EXAMPLE, (1, 2, 3), key="x", labels=[2]), "x: label 2; there are 2 classes"),
        (lambda w: w.add(EXAMPLE, (1, 1, 6), key="x", labels=[-1]), "x: label -1; there are 2 classes"),
    ],
)
def test_what_is_wrong_names_the_example_and_the_rule(
    tmp_path: Path, add: Callable[[ShardWriter], None], words: str
) -> None:
    writer = ShardWriter(tmp_path / "set", LAYOUT, classes=["a", "b"])
    writer.add(EXAMPLE, (1, 2, 3), key="a")
    with pytest.raises(ValueError, match="^example ") as error:
        add(writer)
    assert str(error.value).startswith(f"example {words}")
    # and nothing of it stays
    assert writer.finish()["totals"]["num_inputs"] == 1
    assert patchpack.verify(tmp_path / "set") == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        ShardWriter(tmp_path, LAYOUT)
    with pytest.raises(ValueError, match="group_size 0"):
        ShardWriter(tmp_path / "set", LAYOUT, group_size=0)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_nothing_can_be_added_to_a_finished_dataset(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", LAYOUT) as writer:
        writer.add(EXAMPLE, (1, 2, 3), key="a")
    with pytest.raises(ValueError, match="example b: the dataset is finished"):
        writer.add(EXAMPLE, (1, 2, 3), key="b")
    assert writer.finish() == writer.report


def test_nothing_is_a_dataset_too(tmp_path: Path) -> None:
    report = pack_arrays([], tmp_path / "set", LAYOUT)
    assert report["totals"]["stored"]["num_sequences"] == 0
    assert patchpack.verify(tmp_path / "set") == []
