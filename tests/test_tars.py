"""Tars as inputs: what lies beside a member, and what damaged and hostile ones become."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from support.inputs import OPTIONS, picture, rejects, segments, write_tar

Run = Callable[..., Result]


@pytest.mark.slow
def test_wds_samples_bring_label_caption_weight_and_more(tmp_path: Path, run: Run) -> None:
    members: dict[str, bytes] = {}
    for number in range(6):
        members |= {f"s/{number:04}.png": picture(number), f"s/{number:04}.cls": b" %d\n" % (3 * number)}
        members |= {f"s/{number:04}.txt": f"caf\u00e9 {number}".encode()}
        members |= {f"s/{number:04}.json": json.dumps({"w": number / 2, "tags": ["x", number]}).encode()}
    tar = write_tar(tmp_path / "s.tar", members)
    options = ("--label-column", "cls", "--caption-column", "txt", "--weight-column", "w", "--keep-column", "tags")
    assert run("build", tar, "--output", tmp_path / "out", *OPTIONS, *options).code == 0
    # whole numbers in the order of their value
    assert json.loads((tmp_path / "out/manifest.json").read_text())["classes"] == ["0", "3", "6", "9", "12", "15"]
    found = segments(tmp_path / "out")
    for number in range(6):
        segment = found[f"s/{number:04}.png"]
        assert (segment["labels"], segment["captions"]) == ([number], [f"caf\u00e9 {number}"])
        assert (segment["weight"], json.loads(segment["extra"])) == (number / 2, {"tags": ["x", number]})
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["totals"]["ignored"] == {".cls": 6, ".json": 6, ".txt": 6}


@pytest.mark.slow
def test_keys_that_repeat_from_tar_to_tar_get_their_name_in_front(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": picture(ord(name)), "1.png": picture(1 + ord(name))})
    ended = run("build", f"{tmp_path}/*.tar", "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert f"two inputs of this key, {tmp_path}/a.tar at byte" in ended.err and f"{tmp_path}/b.tar at byte" in ended.err
    assert run("build", f"{tmp_path}/*.tar", "--output", tmp_path / "out", *OPTIONS, "--prefix-keys").code == 0
    assert sorted(segments(tmp_path / "out")) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


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
@pytest.mark.slow_beyond(1)
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


def test_a_member_that_is_over_the_limit_is_never_read(tmp_path: Path, run: Run) -> None:
    large = tarfile.TarInfo("large.png")
    large.size = 2**31
    with write_tar(tmp_path / "t.tar", {"0.png": picture(0)}).open("r+b") as file:
        file.seek((len(picture(0)) + 1023) // 512 * 512)
        file.write(large.tobuf())
        file.truncate(file.tell() + 2**31 + 1024)
    ended = run("build", tmp_path / "t.tar", "--output", tmp_path / "out", *OPTIONS)
    assert ended.code == 0, ended.err
    assert rejects(tmp_path / "out") == [("large.png", "probe", "too_large")]
    assert list(segments(tmp_path / "out")) == ["0.png"]


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
