"""Listing: which files count, what each is called, and that nothing is lost or read twice."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image
from support.media_files import photo, write_files, write_odd_entries, write_odd_names

from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.stages.list import (
    Branch,
    list_branch,
    list_input,
    list_top,
    parse_input,
    printable,
    source_path,
)
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Ignored, Reject, Source
from patchpack.pipeline.storage import files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of media, and of files that are none."""
    folder = tmp_path / "somewhere" / "photos"
    names = ["a.jpg", "b.PNG", "sub/c.webp", "sub/deep/d.mp4", "sub/deep/e.mkv", "2024 [May]/f.jpg"]
    others = ["notes.txt", "sub/list.TXT", "sub/Makefile", ".hidden.jpg", ".git/g.jpg", "sub/.h/i.jpg"]
    write_files(folder, dict.fromkeys(names + others, b"x"))
    return folder


def listed(text: str | Path, *exclude: str, any_suffix: bool = False) -> list[Source | Ignored | Reject]:
    """Returns all that one argument contributes, as a command would read it; checks that listing it folder by folder gives the same."""
    given = parse_input(0, str(text))
    found = list(list_input(given, exclude, any_suffix))
    apart: list[object] = []
    for one in list_top(given, exclude, any_suffix):
        apart += list_branch(one, exclude, any_suffix) if isinstance(one, Branch) else [one]
    assert sorted(map(repr, apart)) == sorted(map(repr, found))
    return found


def keys(found: list[Source | Ignored | Reject], kind: type = Source) -> list[str]:
    """Returns the keys of one kind, sorted."""
    return sorted(outcome.key for outcome in found if isinstance(outcome, kind))


ALL_KEYS = [
    "photos/2024 [May]/f.jpg",
    "photos/a.jpg",
    "photos/b.PNG",
    "photos/sub/c.webp",
    "photos/sub/deep/d.mp4",
    "photos/sub/deep/e.mkv",
]
OTHER_KEYS = ["photos/notes.txt", "photos/sub/Makefile", "photos/sub/list.TXT"]


def test_a_folder_gives_its_media_under_keys_that_begin_with_its_name(photos: Path) -> None:
    assert keys(listed(photos)) == ALL_KEYS


@pytest.mark.parametrize(("num_folders", "most"), [(0, 0), (3, 3), (64, 64), (1000, 260)])
def test_folders_are_listed_apart_each_once_and_many_of_them_together(
    num_folders: int, most: int, tmp_path: Path
) -> None:
    write_files(tmp_path, {f"{number:04}/a.jpg": b"x" for number in range(num_folders)} | {"b.jpg": b"x"})
    branches = [one for one in list_top(parse_input(0, str(tmp_path)), ()) if isinstance(one, Branch)]
    assert sorted(folder for branch in branches for folder in branch.parts) == [f"{n:04}" for n in range(num_folders)]
    assert all(len(branch.parts) == 1 for branch in branches[:64]) and len(branches) <= most


def test_keys_do_not_depend_on_where_the_folder_is_or_how_it_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.rename(photos, tmp_path / "elsewhere" / "photos")
    moved = tmp_path / "elsewhere" / "photos"
    monkeypatch.chdir(tmp_path / "elsewhere")
    for text in (str(moved), f"{moved}/", "photos", "photos/", "./photos", "../elsewhere/photos", f"{moved}//"):
        assert keys(listed(text)) == ALL_KEYS, text
    monkeypatch.chdir(moved)
    for text in (".", "sub/.."):
        assert keys(listed(text)) == ALL_KEYS, text


def test_every_source_can_be_opened_where_it_says(photos: Path) -> None:
    given = parse_input(0, str(photos))
    for source in list_input(given, ()):
        if isinstance(source, Source):
            with files.open_read(source_path(source, [given.root])) as file:
                assert file.read() == b"x"
            assert source.size_bytes == 1


def test_what_is_left_out_is_counted_by_suffix(photos: Path) -> None:
    why = Counter(outcome.why for outcome in listed(photos) if isinstance(outcome, Ignored))
    assert why == {".txt": 2, "(no suffix)": 1, "(hidden)": 3}
    assert keys(listed(photos), Reject) == []


def test_excluded_files_are_counted_not_read(photos: Path) -> None:
    found = listed(photos, "photos/sub/*", "*.PNG")
    assert keys(found) == ["photos/2024 [May]/f.jpg", "photos/a.jpg"]
    excluded = [
        outcome.key for outcome in found if isinstance(outcome, Ignored) and outcome.why.startswith("(excluded by ")
    ]
    assert sorted(excluded) == sorted(
        [*ALL_KEYS[2:], "photos/sub/list.TXT", "photos/sub/Makefile", "photos/sub/.h/i.jpg"]
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["photos/a.jpg"]),
        ("*", ["photos/a.jpg", "photos/b.PNG", "photos/notes.txt"]),
        ("?.jpg", ["photos/a.jpg"]),
        ("[ab].*", ["photos/a.jpg", "photos/b.PNG"]),
        ("*/*.webp", ["photos/sub/c.webp"]),
        ("**", sorted([*ALL_KEYS, *OTHER_KEYS])),
        ("**/*", sorted([*ALL_KEYS, *OTHER_KEYS])),
        ("**/*.jpg", ["photos/2024 [May]/f.jpg", "photos/a.jpg"]),
        ("**/deep/*.mp4", ["photos/sub/deep/d.mp4"]),
        ("**/**/d.*", ["photos/sub/deep/d.mp4"]),
        ("*/**", sorted([ALL_KEYS[0], *ALL_KEYS[3:], *OTHER_KEYS[1:]])),
        (".*", ["photos/.hidden.jpg"]),
        ("sub/.h/*", [".h/i.jpg"]),
        ("**/.h/*", ["photos/sub/.h/i.jpg"]),
        ("nothing*.jpg", []),
        ("no/such/folder/*.jpg", []),
    ],
)
def test_a_glob_matches_each_file_once_under_the_keys_of_its_folder(
    photos: Path, pattern: str, expected: list[str]
) -> None:
    found = listed(photos / pattern)
    assert keys(found) == expected
    assert keys(found, Reject) == []


def test_keys_of_a_glob_begin_at_the_last_folder_without_wildcards(photos: Path) -> None:
    assert keys(listed(photos / "sub" / "*" / "*.m*")) == ["sub/deep/d.mp4", "sub/deep/e.mkv"]
    assert keys(listed(photos.parent / "ph*" / "a.jpg")) == ["somewhere/photos/a.jpg"]


def test_a_glob_takes_whatever_it_matches_but_hidden_files(photos: Path) -> None:
    assert keys(listed(photos / "*.txt")) == ["photos/notes.txt"]
    assert Counter(outcome.why for outcome in listed(photos / "*") if isinstance(outcome, Ignored)) == {"(hidden)": 1}


def test_a_folder_gives_every_file_that_is_not_hidden_where_any_suffix_will_do(photos: Path) -> None:
    found = listed(photos, any_suffix=True)
    assert keys(found) == sorted([*ALL_KEYS, *OTHER_KEYS])
    assert {outcome.why for outcome in found if isinstance(outcome, Ignored)} == {"(hidden)"}


def test_content_decides_where_no_suffix_does_and_what_is_no_media_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "crawl"
    write_files(folder, {"1f": photo(), "2.dat": photo(), "README.md": b"# hello", "done": b"", "bad.jpg": b"# hello"})
    for text, any_suffix in ((folder, True), (folder / "*", False)):
        found = {}
        for source in listed(text, any_suffix=any_suffix):
            (found[source.key],) = probe(source, str(tmp_path / source.key), ClipRule(), 10**6, 10**6)
        assert {key: type(outcome) for key, outcome in found.items()} == {
            "crawl/1f": Example,
            "crawl/2.dat": Example,
            "crawl/README.md": Ignored,
            "crawl/done": Ignored,
            "crawl/bad.jpg": Reject,
        }
        assert found["crawl/done"].why == "(no media by content)" and found["crawl/bad.jpg"].reason == "unknown_format"
    (single,) = listed(folder / "README.md")
    assert probe(single, str(folder / "README.md"), ClipRule(), 10**6)[0].reason == "unknown_format"


@pytest.mark.parametrize(
    ("suffix", "format", "codec"),
    [
        ("3g2", "3g2", "libx264"), ("f4v", "f4v", "libx264"), ("qt", "mov", "libx264"), ("divx", "avi", "mpeg4"),
        ("m2v", "mpeg2video", "mpeg2video"), ("m1v", "mpeg1video", "mpeg1video"), ("vob", "vob", "mpeg2video"),
        ("mpe", "mpeg", "mpeg1video"), ("m2t", "mpegts", "mpeg2video"), ("asf", "asf", "mpeg4"), ("ogm", "ogg", "libvpx"),
    ],
)  # fmt: skip
def test_less_usual_suffixes_of_videos_are_listed_and_their_containers_opened(
    tmp_path: Path, suffix: str, format: str, codec: str
) -> None:
    path = tmp_path / "clips" / f"a.{suffix}"
    path.parent.mkdir()
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), (8 * number, 90, 90)))))
        container.mux(stream.encode(None))
    (source,) = listed(path.parent)
    (example,) = probe(source, str(path), ClipRule(1, 4), 10**6)
    assert isinstance(example, Example) and (example.source_height, example.source_width) == (48, 64)


def test_a_single_file_is_tried_whatever_its_suffix(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    for text, key in (
        (photos / "a.jpg", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("sub/../a.jpg", "a.jpg"),
        ("notes.txt", "notes.txt"),
        (".hidden.jpg", ".hidden.jpg"),
        ("sub/Makefile", "Makefile"),
    ):
        assert listed(text) == [Source(key, 0, key, 1)], text


def test_brackets_are_a_name_where_there_is_one_and_else_a_pattern(photos: Path) -> None:
    write_files(photos, {"[x].jpg": b"1", "x.jpg": b"22"})
    assert [outcome.key for outcome in listed(photos / "[x].jpg")] == ["[x].jpg"]
    assert keys(listed(photos / "[xy].jpg")) == ["photos/x.jpg"]
    assert keys(listed(photos / "2024 [May]" / "*.jpg")) == ["2024 [May]/f.jpg"]
    assert keys(listed(photos / "2024 [May]")) == ["2024 [May]/f.jpg"]
    assert keys(listed(photos / "202? [[]May]" / "*.jpg")) == ["photos/2024 [May]/f.jpg"]


def test_nothing_of_that_name_is_an_error_with_the_name(photos: Path) -> None:
    missing = photos / "missing.jpg"
    with pytest.raises(ValueError) as caught:
        parse_input(0, str(missing))
    assert str(caught.value).startswith(f"{missing}: no such file or folder; ")


def test_names_that_are_not_utf8_are_percent_encoded_and_stay_openable(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = write_odd_names(folder, photo())
    write_files(tmp_path / os.fsdecode(b"f\xf6lder"), {"a.jpg": b"x"})
    found = listed(folder)
    assert {source.key for source in found} >= {"odd/latin-%E9.jpg", "odd/%FF%FE.jpg", "odd/ümläut.jpg", "odd/100%.jpg"}
    assert len(found) == len(names)
    for source in found:
        assert isinstance(source, Source)
        assert source.key.encode().decode() == source.key
        assert files.read(os.path.join(folder, source.path)) == photo()
    (inner,) = listed(tmp_path / os.fsdecode(b"f\xf6lder"))
    assert inner.key == "f%F6lder/a.jpg"
    assert printable(os.fsdecode(b"\x80\xff ok")) == "%80%FF ok"


def test_links_that_lead_back_end(photos: Path) -> None:
    (photos / "sub" / "up").symlink_to(photos)
    (photos / "sub" / "deep" / "self").symlink_to(photos / "sub" / "deep")
    (photos / "itself").symlink_to(photos / "itself")
    # a glob takes the link that leads to itself, too; reading it is a reject
    for text, expected in ((photos, ALL_KEYS), (photos / "**", sorted([*ALL_KEYS, *OTHER_KEYS, "photos/itself"]))):
        found = listed(text)
        assert keys(found) == expected
        assert len(found) < 30


def test_links_to_other_folders_and_files_are_followed(photos: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "other", {"o.jpg": b"x", "n.jpg": b"yy"})
    (photos / "linked").symlink_to(tmp_path / "other")
    (photos / "l.jpg").symlink_to(tmp_path / "other" / "n.jpg")
    assert keys(listed(photos)) == sorted([*ALL_KEYS, "photos/l.jpg", "photos/linked/n.jpg", "photos/linked/o.jpg"])
    assert [outcome.size_bytes for outcome in listed(photos / "l.jpg")] == [2]


def test_pipes_are_rejected_and_never_block(tmp_path: Path) -> None:
    write_odd_entries(tmp_path / "odd")
    results: list[list[Source | Ignored | Reject]] = []

    def look() -> None:
        results.extend(listed(text) for text in (tmp_path / "odd", tmp_path / "odd" / "pipe.jpg"))

    # a thread of its own: should it block, the test fails instead of hanging
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    for found in results:
        (reject,) = (outcome for outcome in found if isinstance(outcome, Reject))
        assert reject.key.endswith("pipe.jpg")
        assert (reject.stage, reject.reason) == ("list", "not_a_file")
    # links that lead nowhere are found out when they are read
    assert keys(results[0]) == ["odd/dangling.jpg", "odd/itself.jpg"]


@pytest.mark.parametrize("pattern", ["", "**/*.jpg"])
def test_a_subfolder_that_cannot_be_read_is_a_reject_and_the_rest_is_listed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    # not by its mode: tests may run as root
    really = os.listdir

    def refuse(folder: str) -> list[str]:
        if folder.endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return really(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    found = listed(photos / pattern if pattern else photos)
    (reject,) = (outcome for outcome in found if isinstance(outcome, Reject))
    assert reject == Reject("photos/sub", "list", "unreadable", "Permission denied")
    assert {"photos/2024 [May]/f.jpg", "photos/a.jpg"} <= set(keys(found))


def test_an_input_that_cannot_be_read_at_all_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = parse_input(0, str(photos))

    def refuse(folder: str) -> Iterator[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        list(list_input(given, ()))


def test_an_empty_folder_gives_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
