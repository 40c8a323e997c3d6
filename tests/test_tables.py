"""Tables and tars as inputs: the same pictures give the same tokens, and what cannot be used is a row or a line."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image

from patchpack.pipeline.inputs.opened import open_source
from patchpack.pipeline.inputs.table import below_root
from patchpack.pipeline.stages.records import Part, Source

Run = Callable[..., Result]
OPTIONS = ("--workers", 1, "--sequence-length", 256, "--resolution", "side:32-96", "--media-backend", "pillow")
RAW = ["tokens", "segment_ids", "positions"]


def picture(number: int, format: str = "PNG") -> bytes:
    slope = np.linspace((0, 9 * number % 250, 200), (250, 30, 10), 6000).reshape(60, 100, 3)
    data = io.BytesIO()
    Image.fromarray(slope.astype(np.uint8)).save(data, format)
    return data.getvalue()


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


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


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


def segments(out: Path) -> dict[str, dict[str, Any]]:
    """Returns the segments of a dataset by key."""
    rows = [
        row for path in sorted((out / "sequences").iterdir()) for row in pq.read_table(path)["segments"].to_pylist()
    ]
    return {segment["source"]: segment for row in rows for segment in row}


def rejects(out: Path) -> list[tuple[str, str, str]]:
    """Returns key, stage and reason of the rejects of a dataset."""
    return [(row["key"], row["stage"], row["reason"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()]


@pytest.fixture(scope="module")
def of_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the loose files."""
    from patchpack import command

    out = tmp_path_factory.mktemp("files") / "out"
    assert command.main(["build", str(folder / "photos"), "--output", str(out), *map(str, OPTIONS)]) == 0
    return out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tar", "parquet", "parquets"])
@pytest.mark.parametrize("isolation", ["none", "process"])
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
def test_labels_of_a_column_are_classes(kind: str, folder: Path, tmp_path: Path, run: Run) -> None:
    given = as_inputs(folder, kind)
    assert run("build", given, "--output", tmp_path / "out", *OPTIONS, "--label-column", "label").code == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    for key, segment in segments(tmp_path / "out").items():
        assert segment["labels"] == [["cat", "dog"].index(key.split("/")[1])]


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


def test_wds_samples_bring_label_caption_weight_and_more(folder: Path, tmp_path: Path, run: Run) -> None:
    members: dict[str, bytes] = {}
    for number in range(6):
        members |= {f"s/{number:04}.png": picture(number), f"s/{number:04}.cls": b" %d\n" % (10 * number)}
        members |= {f"s/{number:04}.txt": f"caf\u00e9 {number}".encode()}
        members |= {f"s/{number:04}.json": json.dumps({"w": number / 2, "tags": ["x", number]}).encode()}
    tar = write_tar(tmp_path / "s.tar", members)
    options = ("--label-column", "cls", "--caption-column", "txt", "--weight-column", "w", "--keep-column", "tags")
    assert run("build", tar, "--output", tmp_path / "out", *OPTIONS, *options).code == 0
    # whole numbers in the order of their value
    assert json.loads((tmp_path / "out/manifest.json").read_text())["classes"] == ["0", "10", "20", "30", "40", "50"]
    found = segments(tmp_path / "out")
    for number in range(6):
        segment = found[f"s/{number:04}.png"]
        assert (segment["labels"], segment["captions"]) == ([number], [f"caf\u00e9 {number}"])
        assert (segment["weight"], json.loads(segment["extra"])) == (number / 2, {"tags": ["x", number]})
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["totals"]["ignored"] == {".cls": 6, ".json": 6, ".txt": 6}


def test_keys_that_repeat_from_tar_to_tar_get_their_name_in_front(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": picture(ord(name)), "1.png": picture(1 + ord(name))})
    ended = run("build", f"{tmp_path}/*.tar", "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert f"two inputs of this key, {tmp_path}/a.tar at byte" in ended.err and f"{tmp_path}/b.tar at byte" in ended.err
    assert run("build", f"{tmp_path}/*.tar", "--output", tmp_path / "out", *OPTIONS, "--prefix-keys").code == 0
    assert sorted(segments(tmp_path / "out")) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def test_two_rows_of_one_key_are_one_line_that_names_both(folder: Path, tmp_path: Path, run: Run) -> None:
    rows = [{"path": names(folder)[0], "label": "cat"}, {"path": names(folder)[0], "label": "dog"}]
    ended = run(
        *("build", write_csv(tmp_path / "t.csv", rows), "--output", tmp_path / "out", *OPTIONS, "--media-root", folder)
    )
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "of row 1 and " in ended.err and "of row 2" in ended.err


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


def damaged(kind: str, tmp_path: Path) -> Path:
    """Returns a tar of four pictures with one kind of damage."""
    path = write_tar(tmp_path / "t.tar", {f"{n}.png": picture(n) for n in range(4)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        ends = [member.offset_data + member.size for member in archive]
    if kind == "cut in data":
        data = data[: ends[2] - 5]
    elif kind == "cut in header":
        data = data[: (ends[1] + 511) // 512 * 512 + 100]
    elif kind == "broken header":
        at = (ends[1] + 511) // 512 * 512
        data[at : at + 50] = b"\x77" * 50
    elif kind == "2 GB member":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("0.png"))
        data = bytearray(path.read_bytes())
        info = tarfile.TarInfo("1.png")
        info.size = 2**31
        header = info.tobuf()
        data = (
            bytearray(write_tar(path, {"0.png": picture(0)}).read_bytes()[: (len(picture(0)) + 1023) // 512 * 512])
            + header
        )
    elif kind == "huge name":
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**31
        data = bytearray(info.tobuf()) + bytes(2048)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("kind", "packed", "rejected"),
    [
        ("cut in data", 2, [("2.png", "broken"), ("t.tar", "broken")]),
        ("cut in header", 2, [("t.tar", "broken")]),
        ("broken header", 2, [("t.tar", "broken")]),
        ("2 GB member", 1, [("1.png", "broken"), ("t.tar", "broken")]),
        ("huge name", 0, [("t.tar", "broken")]),
        ("none", 4, []),
    ],
)
def test_what_is_whole_of_a_damaged_tar_is_packed(
    kind: str, packed: int, rejected: list[tuple[str, str]], tmp_path: Path, run: Run
) -> None:
    path = damaged(kind, tmp_path)
    ended = run("build", path, "--output", tmp_path / "out", *OPTIONS)
    if not packed:
        assert (ended.code, ended.err.count("\n")) == (1, 1) and "t.tar: broken" in ended.err
        return
    assert ended.code == 0, ended.err
    assert len(segments(tmp_path / "out")) == packed
    assert [(key, reason) for key, _, reason in rejects(tmp_path / "out")] == rejected


def test_members_that_lead_out_links_and_twins_never_read_anything_else(tmp_path: Path, run: Run) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("../up.png", "/abs.png", "a/../../up.png", "ok.png", ".hidden.png", "note.md"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            archive.addfile(info, io.BytesIO(picture(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert run("build", tmp_path / "t.tar", "--output", tmp_path / "out", *OPTIONS).code == 0
    assert list(segments(tmp_path / "out")) == ["ok.png"]
    assert {reason for _, _, reason in rejects(tmp_path / "out")} == {"outside"} and len(rejects(tmp_path / "out")) == 3
    ignored = json.loads((tmp_path / "out/report.json").read_text())["totals"]["ignored"]
    assert ignored == {"(link in a tar)": 3, "(hidden)": 1, ".md": 1}
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for number in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(picture(number))
            archive.addfile(info, io.BytesIO(picture(number)))
    ended = run("build", tmp_path / "twice.tar", "--output", tmp_path / "two", *OPTIONS)
    assert ended.code == 2 and ended.err.startswith("a.png: two inputs of this key") and ended.err.count("\n") == 1


def test_compressed_tars_are_refused_whatever_they_are_called(tmp_path: Path, run: Run) -> None:
    for mode, suffix in (("w:gz", "gz"), ("w:bz2", "bz2"), ("w:xz", "xz")):
        path = tmp_path / f"{suffix}.tar"
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.png"))
        ended = run("build", path, "--output", tmp_path / "out", *OPTIONS)
        assert (ended.code, ended.err) == (
            2,
            f"{path}: it is compressed, and members are read by their place; gunzip it first\n",
        )


def test_kinds_are_told_from_the_name_or_by_what_stands_in_front(folder: Path, tmp_path: Path, run: Run) -> None:
    os.rename(as_inputs(folder, "tar"), folder / "all.data")
    assert run("build", f"tar:{folder}/all.data", "--output", tmp_path / "out", *OPTIONS).code == 0
    assert len(segments(tmp_path / "out")) == 10
    os.rename(as_inputs(folder, "csv"), folder / "all.list")
    ended = run("build", f"table:{folder}/all.list", "--output", tmp_path / "two", *OPTIONS)
    assert ended.code == 0, ended.err
    assert len(segments(tmp_path / "two")) == 10


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
