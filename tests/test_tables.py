"""Tables as inputs, beside files and tars: the same pictures give the same tokens, and what cannot be used is a row or a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image
from support.inputs import OPTIONS, picture, rejects, segments, write_csv, write_tar

from patchpack.pipeline.inputs import opened
from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.inputs.table import below_root
from patchpack.pipeline.stages.records import Part, Source

Run = Callable[..., Result]
RAW = ["tokens", "segment_ids", "positions"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures below photos/, in folders of two classes."""
    root = tmp_path_factory.mktemp("inputs")
    for number in range(10):
        path = root / "photos" / ("cat" if number % 3 else "dog") / f"{number}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG" if number % 2 else "JPEG"))
    return root


def names(folder: Path) -> list[str]:
    """Returns the pictures' paths below the folder."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "photos").rglob("*.*"))


def as_inputs(folder: Path, kind: str) -> str:
    """Returns the pictures as an input of a kind, named by the user."""
    rows = [{"path": name, "label": name.split("/")[1], "note": f"n{at}"} for at, name in enumerate(names(folder))]
    if kind == "csv":
        return str(write_csv(folder / "all.csv", rows))
    if kind == "jsonl":
        path = folder / "all.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    if kind == "tar":
        return str(write_tar(folder / "all.tar", {name: (folder / name).read_bytes() for name in names(folder)}))
    if kind in ("parquet", "parquets"):
        images = [{"bytes": (folder / row["path"]).read_bytes(), "path": row["path"]} for row in rows]
        table = pa.table({"image": images, "label": [row["label"] for row in rows]})
        if kind == "parquet":
            pq.write_table(table, folder / "all.parquet", row_group_size=3)
            return str(folder / "all.parquet")
        (folder / "parts").mkdir(exist_ok=True)
        pq.write_table(table[:4], folder / "parts/train-0.parquet")
        pq.write_table(table[4:], folder / "parts/train-1.parquet")
        return str(folder / "parts/train-*.parquet")
    return str(folder / "photos")


def raw(out: Path) -> list[bytes]:
    """Returns every raw value of a dataset, in order."""
    shards = sorted((out / "sequences").iterdir())
    return [value for path in shards for name in RAW for value in pq.read_table(path)[name].to_pylist()]


@pytest.fixture(scope="module")
def of_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the loose files."""
    from patchpack import command

    out = tmp_path_factory.mktemp("files") / "out"
    assert command.main(["build", str(folder / "photos"), "--output", str(out), *map(str, OPTIONS)]) == 0
    return out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tar", "parquet", "parquets"])
@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.slow_beyond(2)
def test_the_same_pictures_give_the_same_tokens_however_they_are_stored(
    kind: str, isolation: str, folder: Path, of_files: Path, tmp_path: Path, run: Run
) -> None:
    ended = run(
        *("build", as_inputs(folder, kind), "--output", tmp_path / "out", *OPTIONS, "--decode-isolation", isolation)
    )
    assert ended.code == 0, ended.err
    assert raw(tmp_path / "out") == raw(of_files) != []
    assert segments(tmp_path / "out").keys() == segments(of_files).keys()
    assert run("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.slow_beyond(1)
def test_labels_of_a_column_are_classes(kind: str, folder: Path, tmp_path: Path, run: Run) -> None:
    given = as_inputs(folder, kind)
    assert run("build", given, "--output", tmp_path / "out", *OPTIONS, "--label-column", "label").code == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    for key, segment in segments(tmp_path / "out").items():
        assert segment["labels"] == [["cat", "dog"].index(key.split("/")[1])]


@pytest.mark.slow
def test_a_build_of_a_table_goes_on_and_names_what_is_new(folder: Path, tmp_path: Path, run: Run) -> None:
    rows = [{"path": str(folder / name)} for name in names(folder)]
    table = write_csv(tmp_path / "t.csv", rows[:8])
    options = (*OPTIONS, "--media-root", folder)
    assert run("build", table, "--output", tmp_path / "out", *options).code == 0
    before = raw(tmp_path / "out")
    write_csv(table, rows)
    (tmp_path / "out/manifest.json").unlink()
    next((tmp_path / "out/sequences").iterdir()).unlink()
    ended = run("build", "--output", tmp_path / "out", "--resume")
    assert ended.code == 0 and "2 inputs are new" in ended.err.replace("are not in the plan", "are new"), ended.err
    assert raw(tmp_path / "out") == before


def test_two_rows_of_one_key_are_one_line_that_names_both(folder: Path, tmp_path: Path, run: Run) -> None:
    rows = [{"path": names(folder)[0], "label": "cat"}, {"path": names(folder)[0], "label": "dog"}]
    ended = run(
        *("build", write_csv(tmp_path / "t.csv", rows), "--output", tmp_path / "out", *OPTIONS, "--media-root", folder)
    )
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "of row 1 and " in ended.err and "of row 2" in ended.err


@pytest.mark.slow
def test_several_rows_of_a_label_file_are_several_labels(folder: Path, tmp_path: Path, run: Run) -> None:
    keys = names(folder)
    rows = [{"key": key, "label": label} for key in keys[:8] for label in ("b", "a")]
    rows += [{"key": "photos/nobody.png", "label": "a"}, {"key": keys[8], "label": "c"}]
    labels = write_csv(tmp_path / "labels.csv", rows)
    with labels.open("ab") as file:
        file.write(b"photos/x.png,\xff\xfe\nonly one cell\n")
    ended = run("build", folder / "photos", "--output", tmp_path / "out", *OPTIONS, "--labels", labels)
    assert ended.code == 0, ended.err
    assert f"--labels {labels}: 1 of 10 inputs have no label" in ended.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["classes"], manifest["config"]["labels"]) == (["a", "b", "c"], "labels.csv")
    found = segments(tmp_path / "out")
    assert [found[key]["labels"] for key in (keys[0], keys[8], keys[9])] == [[1, 0], [2], []]
    assert rejects(tmp_path / "out") == [("labels.csv#19", "list", "bad_row"), ("labels.csv#20", "list", "bad_row")]
    assert manifest["totals"]["ignored"] == {"(label of no input)": 1}
    # a build that goes on has the same labels, wherever its file now lies
    (tmp_path / "out/manifest.json").unlink()
    assert run("build", "--output", tmp_path / "out", "--resume").code == 0


@pytest.mark.parametrize("orientation", [1, 6, 2])
@pytest.mark.slow_beyond(1)
def test_boxes_move_with_turn_and_crop(orientation: int, tmp_path: Path, run: Run) -> None:
    pixels = np.full((90, 120, 3), 20, np.uint8)
    # x 12..48, y 45..81
    pixels[45:81, 12:48] = 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    row = {"path": "a.png", "box": json.dumps([[12, 45, 36, 36]])}
    table = write_csv(tmp_path / "t.csv", [row])
    options = (
        "--box-column",
        "box",
        "--box-format",
        "xywh",
        "--resolution",
        "native",
        "--tubelet",
        "1,3,3",
        "--fit",
        "crop",
    )
    for more in ((), ("--flip", "--views", 4, "--crop", "inception:0.9-1")):
        out = tmp_path / f"out{len(more)}"
        ended = run("build", table, "--output", out, *OPTIONS[:2], "--sequence-length", 2048, *options, *more)
        assert ended.code == 0, ended.err
        for path in (out / "sequences").iterdir():
            (found,) = pq.read_table(path).to_pylist()
            (segment,) = found["segments"]
            ((x0, y0, x1, y1),) = segment["boxes"]
            tokens = np.frombuffer(found["tokens"], np.uint8).reshape(2048, 3, 3, 3)[: segment["num_tokens"]]
            grid = tokens.reshape(segment["grid_h"], segment["grid_w"], 3, 3, 3).transpose(0, 2, 1, 3, 4)
            bright = grid.reshape(segment["height"], segment["width"], 3)[:, :, 0] > 130
            rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            scale = (segment["width"], segment["height"]) * 2
            assert [edge / size for edge, size in zip(edges, scale, strict=True)] == pytest.approx(
                [x0, y0, x1, y1], abs=0.015
            )


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([{"path": "../secret.png"}], (), "outside"),
        ([{"path": "/etc/passwd"}], (), "outside"),
        ([{"path": "s3://other/secret.png"}], (), "outside"),
        ([{"path": "photos/../../secret.png"}], (), "outside"),
        ([{"path": ""}], (), "bad_row"),
        ([{"path": "photos/x.png", "w": "heavy"}], ("--weight-column", "w"), "bad_row"),
        ([{"path": "photos/x.png", "w": "-1"}], ("--weight-column", "w"), "bad_row"),
        ([{"path": "photos/x.png", "b": "[[1,2,3]]"}], ("--box-column", "b"), "bad_row"),
        ([{"path": "photos/x.png", "b": "[[5,5,1,1]]"}], ("--box-column", "b"), "bad_row"),
        ([{"path": "photos/x.png", "b": "{"}], ("--box-column", "b"), "bad_row"),
    ],
)
@pytest.mark.slow_beyond(2)
def test_a_row_that_cannot_be_used_is_a_reject_and_the_others_are_packed(
    rows: list[dict[str, Any]], options: tuple[str, ...], reason: str, folder: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "in").mkdir()
    os.symlink(folder / "photos", tmp_path / "in/photos")
    good = dict.fromkeys(rows[0], "") | {"path": names(folder)[0]}
    table = write_csv(tmp_path / "in/t.csv", [*rows, good])
    ended = run("build", table, "--output", tmp_path / "out", *OPTIONS, *options)
    assert ended.code == 0, ended.err
    assert rejects(tmp_path / "out") == [("t.csv#1", "list", reason)]
    assert list(segments(tmp_path / "out")) == [names(folder)[0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty table"),
        (
            b"a,b\n1,2\n",
            "no column that names or holds a file; it has a, b; say which with --path-column or --image-column",
        ),
        (b"\xff\xfe,b\n", "the first line is no UTF-8"),
    ],
)
def test_a_table_that_says_nothing_is_one_line(content: bytes, message: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    ended = run("build", tmp_path / "t.csv", "--output", tmp_path / "out", *OPTIONS)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"{tmp_path}/t.csv: {message}")
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_not_there_is_named_with_those_that_are(folder: Path, tmp_path: Path, run: Run) -> None:
    for option in ("--label-column", "--caption-column", "--keep-column", "--id-column", "--image-column"):
        ended = run("build", as_inputs(folder, "csv"), "--output", tmp_path / "out", *OPTIONS, option, "nothing")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "no column nothing (" + option in ended.err and "it has path, label, note" in ended.err
    ended = run("build", folder / "photos", "--output", tmp_path / "out", *OPTIONS, "--label-column", "label")
    assert ended.code == 2 and "of no table or tar" in ended.err
    ended = run("build", as_inputs(folder, "csv"), "--output", tmp_path / "out", *OPTIONS, "--image-column", "note")
    assert ended.code == 2 and "images are bytes, or a struct of bytes and path" in ended.err


@pytest.mark.slow
def test_rows_that_are_no_rows_are_rejects_by_number(folder: Path, tmp_path: Path, run: Run) -> None:
    good = json.dumps({"path": names(folder)[0]})
    lines = ["[1]", "{", good, '{"path": 3.5}', '{"path": null}', "", '{"path": "a\\ud800.png"}', "[" * 100_000]
    (tmp_path / "t.jsonl").write_text("\n".join([json.dumps({"path": names(folder)[1]}), *lines]))
    ended = run("build", tmp_path / "t.jsonl", "--output", tmp_path / "out", *OPTIONS, "--media-root", folder)
    assert ended.code == 0, ended.err
    assert [key for key, _, reason in rejects(tmp_path / "out") if reason == "bad_row"] == [
        f"t.jsonl#{number}" for number in (2, 3, 5, 6, 8, 9)
    ]
    assert len(segments(tmp_path / "out")) == 2
    (tmp_path / "t.csv").write_bytes(b"path,label\n" + names(folder)[0].encode() + b",a\nx,y,z\nq.png,\xff\n")
    options = ("--media-root", folder, "--label-column", "label")
    assert run("build", tmp_path / "t.csv", "--output", tmp_path / "two", *OPTIONS, *options).code == 0
    assert [key for key, _, _ in rejects(tmp_path / "two")] == ["t.csv#2", "t.csv#3"]


@pytest.mark.slow
def test_kinds_are_told_from_the_name_or_by_what_stands_in_front(folder: Path, tmp_path: Path, run: Run) -> None:
    os.rename(as_inputs(folder, "tar"), folder / "all.data")
    assert run("build", f"tar:{folder}/all.data", "--output", tmp_path / "out", *OPTIONS).code == 0
    assert len(segments(tmp_path / "out")) == 10
    os.rename(as_inputs(folder, "csv"), folder / "all.list")
    ended = run("build", f"table:{folder}/all.list", "--output", tmp_path / "two", *OPTIONS)
    assert ended.code == 0, ended.err
    assert len(segments(tmp_path / "two")) == 10
    # a name that is silent: how it begins says what it is
    for kind in ("jsonl", "parquet"):
        os.rename(as_inputs(folder, kind), folder / f"all_{kind}")
        ended = run("build", f"table:{folder}/all_{kind}", "--output", tmp_path / kind, *OPTIONS)
        assert ended.code == 0, ended.err
        assert len(segments(tmp_path / kind)) == 10


def test_each_table_of_a_glob_names_files_beside_itself(tmp_path: Path, run: Run) -> None:
    for number, name in enumerate(("a", "b")):
        (tmp_path / "in" / name / "images").mkdir(parents=True)
        (tmp_path / "in" / name / f"images/{number}.png").write_bytes(picture(number))
        write_csv(tmp_path / "in" / name / "t.csv", [{"path": f"images/{number}.png"}])
    ended = run("build", f"{tmp_path}/in/*/t.csv", "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 0, ended.err
    assert sorted(segments(tmp_path / "out")) == ["images/0.png", "images/1.png"]


def test_compressed_tables_are_refused_with_the_way_out(tmp_path: Path, run: Run) -> None:
    for suffix in ("csv", "tsv", "jsonl"):
        (tmp_path / f"t.{suffix}.gz").write_bytes(b"\x1f\x8b")
        ended = run("build", tmp_path / f"t.{suffix}.gz", "--output", tmp_path / "out", *OPTIONS)
        assert (ended.code, ended.err.count("\n")) == (2, 1) and "gunzip it, or write Parquet" in ended.err


def test_a_long_cell_of_a_csv_is_a_cell(folder: Path, tmp_path: Path, run: Run) -> None:
    rows = [{"path": name, "text": "x" * 200_000} for name in names(folder)[:2]]
    table = write_csv(tmp_path / "t.csv", rows)
    options = ("--media-root", folder, "--caption-column", "text")
    ended = run("build", table, "--output", tmp_path / "out", *OPTIONS, *options)
    assert ended.code == 0, ended.err
    assert [segment["captions"] for segment in segments(tmp_path / "out").values()] == [["x" * 200_000]] * 2


def test_a_table_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    cell = Source("k", 0, "t.parquet", -1, part=Part(row_group=0, row=1, column="image"))
    for content in (b"first", b"other"):
        pq.write_table(pa.table({"image": [b"", content]}), tmp_path / "t.parquet")
        os.utime(tmp_path / "t.parquet", ns=(0, int.from_bytes(content, "big") % 10**15))
        with open_source(cell, str(tmp_path / "t.parquet")) as file:
            assert file.read() == content


def test_row_groups_are_kept_while_they_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": [bytes([n]) * 1000 for n in range(8)]}), path, row_group_size=2, compression=None)
    read: list[int] = []
    row_group_of = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
        read.append(number)
        return row_group_of(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    monkeypatch.setattr(opened, "KEPT_BYTES", 7000)
    row_groups = opened.RowGroups()
    for number in (0, 0, 1, 0, 1, 2, 1, 0):
        assert row_groups.column(path, number, "image")[1].as_py() == bytes([2 * number + 1]) * 1000
    assert read == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("named", "root", "below"),
    [
        ("a/b.png", "/data", "a/b.png"),
        ("./a//b.png", "/data", "a/b.png"),
        ("/data/a.png", "/data", "a.png"),
        ("/data/a.png", "/data/", "a.png"),
        ("/database/a.png", "/data", None),
        ("a/../../x", "/data", None),
        ("/data/../x", "/data", None),
        ("gs://b/x/a.png", "gs://b/x", "a.png"),
        ("gs://b/y/a.png", "gs://b/x", None),
        ("a\0.png", "/data", None),
        ("..", "/data", None),
    ],
)
def test_only_what_lies_below_the_root_is_ever_opened(named: str, root: str, below: str | None) -> None:
    assert below_root(named, root) == below


def test_a_part_of_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(200)))
    with open_source(Source("k", 0, "f", 50, part=Part(offset=100)), str(tmp_path / "f")) as file:
        assert file.read(3) == bytes([100, 101, 102]) and file.seek(-2, os.SEEK_END) == 48
        assert file.read() == bytes([148, 149]) and file.read() == b"" and file.seek(60) == 60 and file.read() == b""
        assert file.seek(10) == 10 and file.read(2) == bytes([110, 111])
