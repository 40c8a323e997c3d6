"""Captions packed beside their images: token ids and segment ids of their own, never more than there is room for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image
from support.planned import make_example
from tokenizers import Tokenizer, models, pre_tokenizers

from patchpack import PackedShards
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.inputs.facts import Facts
from patchpack.pipeline.inputs.text import described, tokens_of
from patchpack.pipeline.packing import pack
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample

Run = Callable[..., Result]
OPTIONS = ("--workers", 1, "--sequence-length", 128, "--resolution", "side:40-100", "--caption-column", "texts")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images with no, one or two captions, one of them long."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = []
    for number in range(20):
        Image.new("RGB", (80 + number, 60), (0, 10 * number, 99)).save(folder / f"{number}.png")
        texts = [f"photo {number} of a caf\u00e9", "x" * 200][: number % 3]
        rows.append({"path": f"{number}.png", "texts": texts})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of six words."""
    words = {name: number for number, name in enumerate(["[UNK]", "photo", "of", "a", "x", "7"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "words.json"
    made.save(str(path))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows = [row for path in sorted((out / "sequences").iterdir()) for row in pq.read_table(path).to_pylist()]
    for row in rows:
        row["text_ids"] = np.frombuffer(row["text_ids"], "<i4")
        row["text_segment_ids"] = np.frombuffer(row["text_segment_ids"], "<i2")
    return rows


def test_bytes_are_the_drawn_caption_cut_to_its_limit(table: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    options = ("--captions", "bytes", "--text-length", 96, "--max-text-tokens", 40, "--views", 2)
    assert run("build", table, "--output", out, *OPTIONS, *options).code == 0
    assert run("verify", out).code == 0
    (last, *_), inspected = rows_of(out)[0]["segments"], run("inspect", out, 0).out
    count = last["num_text_tokens"]
    assert (
        f"packed beside it: caption {last['caption'] + 1}, text tokens 0 to {count - 1} ({count})" in inspected
        or not count
    )
    seen, drawn = 0, set()
    for row in rows_of(out):
        ids, end = row["text_segment_ids"], 0
        for number, segment in enumerate(row["segments"], start=1):
            seen += 1
            text = row["text_ids"][ids == number]
            assert segment["text_start"] == end
            end += len(text)
            assert segment["num_text_tokens"] == len(text) <= 40
            if not segment["captions"]:
                assert (segment["caption"], len(text)) == (-1, 0)
                continue
            drawn.add((len(segment["captions"]), segment["caption"]))
            assert bytes(text.tolist()) == segment["captions"][segment["caption"]].encode()[:40]
        assert (ids[end:] == 0).all() and (row["text_ids"][end:] == 0).all()
    # either of two captions comes
    assert seen == 40 and drawn == {(1, 0), (2, 0), (2, 1)}


@pytest.mark.slow
def test_a_tokenizer_of_ones_own_is_used_and_named_by_its_content(
    table: Path, tokenizer: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    ended = run("build", table, "--output", out, *OPTIONS, "--captions", tokenizer)
    assert ended.code == 0, ended.err
    made = Tokenizer.from_file(str(tokenizer))
    for row in rows_of(out):
        for number, segment in enumerate(row["segments"], start=1):
            text = row["text_ids"][row["text_segment_ids"] == number].tolist()
            assert text == (made.encode(segment["captions"][segment["caption"]]).ids if segment["captions"] else [])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["captions"] == described(str(tokenizer)) != "words.json"
    assert manifest["config"]["captions"].startswith("words.json ") and manifest["requires"] == ["text"]
    # a printed recipe says what it is, and where it lies is said again
    printed = run("report", out, "--recipe").out
    assert "# a file; say where it is with --captions FILE" in printed
    (tmp_path / "own.toml").write_text(printed)
    again = ("build", table, "--output", tmp_path / "again", *OPTIONS[:2], "--recipe", tmp_path / "own.toml")
    assert run(*again).code == 2
    assert run(*again, "--captions", tokenizer).code == 0
    assert (tmp_path / "again/shards.parquet").read_bytes() == (out / "shards.parquet").read_bytes()
    # a build that goes on finds it again
    (out / "manifest.json").unlink()
    assert run("build", "--output", out, "--resume").code == 0


def test_no_sequence_has_more_text_than_room_and_the_packer_uses_both(table: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    options = ("--captions", "bytes", "--text-length", 64, "--resolution", "side:40-60")
    assert run("build", table, "--output", out, *OPTIONS, *options).code == 0
    rows = rows_of(out)
    text = [sum(segment["num_text_tokens"] for segment in row["segments"]) for row in rows]
    assert max(text) <= 64 and len(rows) >= -(-sum(text) // 64)
    amounts = [(s["num_tokens"], s["num_text_tokens"]) for row in rows for s in row["segments"]]
    assert len(rows) == pack(sorted(amounts), (128, 64), max_segments=64).num_bins


def test_a_loader_gives_the_texts(table: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run("build", table, "--output", out, *OPTIONS, "--captions", "bytes", "--text-length", 200).code == 0
    for batch in PackedShards(str(out), batch_size=1):
        assert batch["text_ids"].shape == batch["text_segment_ids"].shape == (1, 200)
        assert (batch["text_ids"][batch["text_segment_ids"] == 0] == 0).all()
        assert int(batch["text_segment_ids"].max()) <= int(batch["num_segments"])


@pytest.mark.parametrize("column", ["text_ids", "text_segment_ids"])
@pytest.mark.slow_beyond(1)
def test_damaged_text_is_found(column: str, table: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run("build", table, "--output", out, *OPTIONS, "--captions", "bytes").code == 0
    path = next((out / "sequences").iterdir())
    content = bytearray(path.read_bytes())
    place = content.index(pq.read_table(path)[column][0].as_py())
    content[place] ^= 3
    path.write_bytes(content)
    ended = run("verify", out)
    assert ended.code == 1 and ("digest is" in ended.err or "text_segment_ids differ" in ended.err)


def test_a_caption_is_drawn_for_each_view() -> None:
    example = make_example("a")
    facts = Facts(captions=("one", "three", "eleven"))
    example = example._replace(source=example.source._replace(facts=facts))
    policy = PlanConfig(captions="bytes", views=40).policy
    views = [sample(example, view, policy) for view in range(40)]
    assert {view.caption for view in views if isinstance(view, Reference)} == {0, 1, 2}
    assert {view.num_text_tokens for view in views if isinstance(view, Reference)} == {3, 5, 6}


def test_a_tokenizer_that_was_saved_anew_is_read_anew(tmp_path: Path) -> None:
    for number, text in enumerate(("one", "two")):
        made = Tokenizer(models.WordLevel({text: 7, "?": 0}, unk_token="?"))
        made.save(str(tmp_path / "words.json"))
        os.utime(tmp_path / "words.json", (number, number))
        assert tokens_of(text, str(tmp_path / "words.json"), 8) == [7]


def test_what_is_no_tokenizer_is_one_line(table: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer \(.*\); it is a JSON file of the tokenizers library"):
        tokens_of("a", str(tmp_path / "t.json"), 5)
    ended = run("build", table, "--output", tmp_path / "out", *OPTIONS, "--captions", tmp_path / "none.json")
    assert (ended.code, ended.err.count("\n")) == (2, 1) and "No such file" in ended.err
