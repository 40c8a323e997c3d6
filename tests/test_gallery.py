"""The gallery shows the sequences that it says, as they are stored, within its size, and whatever names they have."""

import base64
import io
import re
import shutil
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.small_set import build_small_set, stored_rows

import patchpack
from patchpack import Layout, ShardWriter, pack_arrays
from patchpack.pipeline.inspection import image as inspection_image
from patchpack.pipeline.inspection import sequence as inspection
from patchpack.pipeline.inspection.segment import frames_of
from patchpack.pipeline.report import gallery as module
from patchpack.pipeline.report.choice import CRITERIA, Choice
from patchpack.pipeline.report.gallery import read_gallery
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.sampling.draws import draw
from patchpack.schemas import FormatError, Shard, read_manifest
from patchpack.schemas.geometry import GRADIENT_ZSTD

Run = Callable[..., Result]
HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "\"' onmouseover='alert(1)' x=\"/a.jpg",
    "</details></section><script>alert(1)</script>.png",
    "‮gpj.exe\x1b[2J\n.jpg",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 4000 + "<b>.jpg",
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset; tests that damage one copy it."""
    return build_small_set(tmp_path_factory.mktemp("gallery"))


def gallery_of(folder: Path, *arguments: int) -> module.Gallery:
    return read_gallery(str(folder), read_manifest(str(folder)), *arguments)


def page_of(folder: Path, gallery: module.Gallery | None) -> str:
    report = patchpack.report(folder)
    return render_html(
        report, gallery, module.thumbnails(str(folder), report["aspect_plane"]["worst"]) if gallery else []
    )


class Page(HTMLParser):
    """Tags, attributes and text of the gallery in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        start = text.index('<section id="gallery">')
        self.feed(text[start : text.index('<section id="storage">', start)])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, each, value in self.attributes if each == name]


def drawn_in_turn(total: int, count: int, seed: int) -> list[int]:
    """Returns the first different numbers below `total` that the words of a seed give, each by its upper bits."""
    drawn = [draw(seed, "gallery", turn) * total // 2**64 for turn in range(2000)]
    return list(dict.fromkeys(drawn))[:count]


def slow_choice(columns: list[np.ndarray], num: int, drawn: list[int]) -> list[tuple[int, str]]:
    """Returns what is shown: criteria take turns, each with its best that is not taken, the lowest number of equal ones."""
    fill = columns[0]
    everyone = range(len(fill))
    ranked = [
        sorted(everyone, key=lambda n: (-fill[n], n)),
        [n for n in sorted(everyone, key=lambda n: (fill[n], n)) if fill[n] < fill.max()],
        *(sorted(everyone, key=lambda n, values=values: (-values[n], n)) for values in columns[1:]),
        drawn,
    ]
    found: list[tuple[int, str]] = []
    turn = 0
    while len(found) < min(num, len(fill)):
        taken = [number for number, _ in found]
        free = [n for n in ranked[turn % 5] if n not in taken]
        found += [(free[0], CRITERIA[turn % 5])] if free else []
        turn += 1
    return sorted(found, key=lambda pair: CRITERIA.index(pair[1]))


@settings(deadline=None)
@given(
    data=st.data(), total=st.integers(0, 40), num=st.integers(1, 12), parts=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_each_criterion_takes_its_best_in_turn(
    data: st.DataObject, total: int, num: int, parts: int, seed: int
) -> None:
    columns = [np.array(data.draw(st.lists(st.integers(0, 4), min_size=total, max_size=total))) for _ in range(3)]
    columns[0] = columns[0] / 4
    choice = Choice(num)
    for part in zip(*(np.array_split(column, parts) for column in columns), strict=True):
        choice.add(*part)
    drawn = drawn_in_turn(total, min(num, total), seed)
    assert choice.chosen(seed) == slow_choice(columns, num, drawn)


def test_a_choice_among_many_keeps_few() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 1025, 200_000) / 1024, rng.integers(1, 65, 200_000), rng.integers(1, 1025, 200_000)]
    choice = Choice(12)
    tracemalloc.start()
    for first in range(0, 200_000, 1000):
        choice.add(*(column[first : first + 1000] for column in columns))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # two numbers of each sequence would take 3.2 MB a criterion
    assert most < 500_000
    order = np.argsort(-columns[2], kind="stable")
    longest = [number for number, chosen_as in choice.chosen(0) if chosen_as == "longest example"]
    assert longest == [n for n in order[: len(longest) + 3].tolist() if n in longest]


def test_the_sequences_shown_are_those_of_the_rows(packed: Path) -> None:
    rows = stored_rows(packed)
    columns = [
        np.array([row["num_tokens"] / 64 for row in rows]),
        np.array([len(row["segments"]) for row in rows]),
        np.array([max([segment["num_tokens"] for segment in row["segments"]], default=0) for row in rows]),
    ]
    drawn = drawn_in_turn(len(rows), 7, 3)
    gallery = gallery_of(packed, 7, 3)
    assert [(s["number"], s["chosen_as"]) for s in gallery["sequences"]] == slow_choice(columns, 7, drawn)
    for s in gallery_of(packed, 100)["sequences"]:
        row = rows[s["number"]]
        assert (s["num_tokens"], s["num_segments"], s["sequence_length"]) == (
            row["num_tokens"],
            row["num_segments"],
            64,
        )
        assert [(e["start"], e["num_tokens"], e["key"]) for e in s["examples"]] == [
            (segment["start"], segment["num_tokens"], segment["source"]) for segment in row["segments"]
        ]
        assert s["rest"] == {"num_examples": 0, "num_tokens": 0}
    assert len(gallery_of(packed, 100)["sequences"]) == len(rows)


def test_frames_are_put_back_together_as_the_format_says(packed: Path) -> None:
    shown = {s["number"]: s for s in gallery_of(packed, 100)["sequences"]}
    layout = read_manifest(str(packed)).layouts[0]
    clips = 0
    for number, row in enumerate(stored_rows(packed)):
        tokens = np.frombuffer(row["tokens"], np.uint8).reshape(64, -1)
        positions = np.frombuffer(row["positions"], np.int16).reshape(64, 3)
        for segment, example in zip(row["segments"], shown[number]["examples"], strict=True):
            t, h, w = segment["grid_t"], segment["grid_h"], segment["grid_w"]
            mine = tokens[segment["start"] :][: segment["num_tokens"]]
            blocks = mine.reshape(t, h, w, 2, 8, 8, 3).transpose(0, 3, 1, 4, 2, 5, 6)
            frames = blocks.reshape(t * 2, h * 8, w * 8, 3)[::2]
            assert np.array_equal(frames_of(segment, {"tokens": tokens, "positions": positions}, layout), frames)  # type: ignore[typeddict-item]
            assert example["grid"] == (h, w) and len(example["frames"]) == t
            for frame, stored in zip(example["frames"], frames, strict=True):
                thumbnail = Image.open(io.BytesIO(base64.b64decode(frame["image"].partition("base64,")[2])))
                assert thumbnail.size == (w * 8, h * 8)
                # WebP loses a little
                assert np.abs(np.array(thumbnail).astype(int) - stored).mean() < 8
            times = [frame["time_s"] for frame in example["frames"]]
            assert times == (segment["timestamps_s"][::2] or [None])
            clips += bool(segment["timestamps_s"])
    assert clips == 1


def test_a_long_clip_is_a_film_strip_from_first_to_last() -> None:
    frames = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.full((16, 20, 300, 1), 16, np.uint8)
    shown = module._frames(frames, [n / 10 for n in range(16)])
    assert [frame["time_s"] for frame in shown] == [0.0, 0.3, 0.6, 0.9, 1.2, 1.5]
    assert {(frame["width"], frame["height"]) for frame in shown} == {(104, 7)}
    levels = [np.array(Image.open(io.BytesIO(base64.b64decode(f["image"].partition(",")[2])))).mean() for f in shown]
    assert np.abs(np.array(levels) - [0, 48, 96, 144, 192, 240]).max() < 3


def test_inspect_says_the_same_below_the_same_frames(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[inspection_image.SegmentImage]] = []
    compose = inspection.compose
    monkeypatch.setattr(
        inspection, "compose", lambda title, images, *rest: seen.append(images) or compose(title, images, *rest)
    )
    for s in gallery_of(packed, 4)["sequences"]:
        inspection.draw(str(packed), s["number"])
        images = seen.pop()
        assert [list(image.captions) for image in images] == [[e["key"], *e["lines"]] for e in s["examples"]]
        assert [len(image.frames) for image in images] == [len(e["frames"]) for e in s["examples"]]
    clip = next(e for s in gallery_of(packed, 100)["sequences"] for e in s["examples"] if len(e["frames"]) > 1)
    assert clip["lines"][0].startswith(f"{clip['num_tokens']} tokens, grid 3x")
    assert clip["lines"][2:] == ["source 48x64 px", "5 frames, 0.12 to 0.62 s, 1 repeated", "label 0: left"]


def test_only_tokens_of_what_is_shown_are_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[tuple[str, int]] = set()
    read_array = Shard.read_array

    def noted(shard: Shard, column: str, row: int) -> np.ndarray:
        read.add((shard.path, row))
        return read_array(shard, column, row)

    monkeypatch.setattr(Shard, "read_array", noted)
    assert gallery_of(packed, 0) == {"sequences": []} and not read
    assert len(gallery_of(packed, 5)["sequences"]) == len(read) == 5


def test_equal_datasets_have_equal_galleries(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    assert gallery_of(packed, 9) == gallery_of(tmp_path / "copy", 9)
    assert gallery_of(packed, 9, 1) != gallery_of(packed, 9)


def test_the_page_of_a_build_shows_them(packed: Path) -> None:
    text = (packed / "report.html").read_text()
    assert text == page_of(packed, gallery_of(packed, module.DEFAULT_SEQUENCES))
    page = Page(text)
    assert page.tags.count("details") == 12 and "script" not in page.tags
    assert {value.partition(",")[0] for value in page.values("src")} == {"data:image/webp;base64"}
    assert not page.values("href")
    assert 'id="gallery"' not in page_of(packed, None)


def test_a_strip_is_drawn_to_scale_and_said_in_words(tmp_path: Path) -> None:
    for height, width in ((16, 32), (8, 24), (8, 8)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{width}.png")
    options = {"tubelet": (1, 8, 8), "resolution": "native", "sequence_length": 24, "align_tokens": 4}
    patchpack.build(sorted(tmp_path.glob("*.png")), tmp_path / "set", workers=1, **options)
    [s] = gallery_of(tmp_path / "set")["sequences"]
    page = Page(page_of(tmp_path / "set", {"sequences": [s]}))
    grown = [int(value.partition(":")[2].partition(";")[0]) for value in page.values("style") if "flex-grow" in value]
    assert sum(grown) == 24
    # each starts at a multiple of 4; what is between is padding
    expected, at = [], 0
    for e in s["examples"]:
        expected += [e["start"] - at] if e["start"] > at else []
        expected.append(e["num_tokens"])
        at = e["start"] + e["num_tokens"]
    assert grown == [*expected, 24 - at] and len(grown) in (5, 6)
    assert page.values("aria-label") == ["sequence 0: 3 examples, 12 of 24 tokens"]


def test_neighbours_differ_in_lightness_and_numbers_are_legible() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        """By WCAG 2.2."""
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (level / 255 for level in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
        dark, light = sorted((luminance(one), luminance(other)))
        return (light + 0.05) / (dark + 0.05)

    for number in range(1, 30):
        colour = inspection_image.colour(number)
        assert contrast(colour, inspection_image.text_colour(number)) >= 4.5
        assert contrast(colour, inspection_image.colour(number + 1)) >= 2.5


def test_dropped_tokens_are_grey(tmp_path: Path) -> None:
    layout = Layout(16, 3, (1, 8, 8))
    tokens = np.full((3, 192), 250, np.uint8)
    positions = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1]])
    with ShardWriter(tmp_path / "set", layout) as writer:
        writer.add(tokens, (1, 2, 2), key="a", positions_N3=positions)
    [s] = gallery_of(tmp_path / "set")["sequences"]
    [example] = s["examples"]
    assert "kept 0.7500 of its tokens" in example["lines"]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(example["frames"][0]["image"].partition(",")[2]))))
    assert pixels.shape == (16, 16, 3)
    middles = pixels[4::8, 4::8].astype(int)
    assert np.abs(middles - np.array([[250, 250], [128, 250]])[..., None]).max() < 6


@pytest.mark.parametrize(
    ("layout", "values", "levels"),
    [
        (Layout(16, 3, (1, 1, 1), channels=8, token_dtype="float32"), (-1.0, np.nan, np.inf, 2.0), [0, 0, 255, 255]),
        (Layout(16, 3, (1, 1, 1), channels=1, token_dtype="int32"), (-5, 0, 2**30, 2**31 - 1), [0, 0, 128, 255]),
        (Layout(16, 3, (1, 1, 1), channels=4, token_dtype="float16"), (0.5, 0.5, 0.5, 0.5), [0, 0, 0, 0]),
        (Layout(16, 3, (1, 1, 1), channels=2), (0, 9, 200, 255), [0, 9, 200, 255]),
    ],
)
def test_tokens_of_any_kind_are_shown(
    tmp_path: Path, layout: Layout, values: tuple[float, ...], levels: list[int]
) -> None:
    tokens = np.repeat(np.array(values, layout.token_dtype)[:, None], layout.channels, axis=1)
    pack_arrays([("a", tokens, (1, 2, 2))], tmp_path / "set", layout)
    [s] = gallery_of(tmp_path / "set")["sequences"]
    assert len(s["examples"][0]["frames"]) == 1
    [path] = (tmp_path / "set" / "sequences").iterdir()
    with Shard(str(path)) as shard:
        row = inspection.read_row(shard, shard.read_metadata(), 0)
    assert frames_of(row["segments"][0], row, layout).ravel().tolist() == levels
    assert inspection.draw(str(tmp_path / "set"), 0).width == inspection_image.WIDTH_PX


def test_encoded_tokens_look_like_plain_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [(f"{n}", rng.integers(0, 256, (4, 48), dtype=np.uint8), (1, 2, 2)) for n in range(9)]
    galleries = []
    for name, layout in (
        ("plain", Layout(16, 3, (1, 4, 4))),
        ("encoded", Layout(16, 3, (1, 4, 4), codec=GRADIENT_ZSTD)),
    ):
        pack_arrays(examples, tmp_path / name, layout)
        galleries.append(gallery_of(tmp_path / name))
    assert galleries[0] == galleries[1]


def test_a_dataset_of_nothing_and_a_sequence_of_nothing_are_shown(packed: Path, tmp_path: Path) -> None:
    pack_arrays([], tmp_path / "set", Layout(16, 3, (1, 1, 1), channels=1))
    gallery = gallery_of(tmp_path / "set")
    assert gallery == {"sequences": []}
    assert "No sequence was stored." in page_of(tmp_path / "set", gallery)
    [empty] = [s for s in gallery_of(packed, 100)["sequences"] if not s["num_segments"]]
    assert empty["examples"] == []
    assert "Empty: every example of it failed" in page_of(packed, {"sequences": [empty]})


def test_hostile_names_are_text(tmp_path: Path) -> None:
    layout = Layout(16, 8, (1, 1, 1), channels=1)
    with ShardWriter(tmp_path / "set", layout, classes=[f"{n}{name}" for n, name in enumerate(HOSTILE)]) as writer:
        for number, name in enumerate(HOSTILE):
            writer.add(np.zeros((2, 1), np.uint8), (1, 1, 2), key=name, labels=[number], captions=[name])
    page = Page(page_of(tmp_path / "set", gallery_of(tmp_path / "set")))
    assert {"script", "svg", "iframe"}.isdisjoint(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {name for _, name, _ in page.attributes} <= {
        *("id", "type", "for", "class", "role", "aria-label", "style", "title", "src", "alt", "width", "height"),
        *("loading", "decoding"),
    }
    assert all(value.startswith("data:image/webp;base64,") for value in page.values("src"))
    assert all(
        re.fullmatch(r"[a-z-]+:[#\w%.]+(;[a-z-]+:[#\w%.]+)*", value.lstrip("-")) for value in page.values("style")
    )
    text = "".join(page.words)
    for shown in (HOSTILE[0], HOSTILE[2], HOSTILE[4], "\\u202egpj.exe\\x1b[2J\\n.jpg", "x…x"):
        assert text.count(shown) >= 3 or (shown == "x…x" and shown in text), shown
    assert len(text) < 12_000
    assert [title for title in page.values("title") if HOSTILE[0] in title]


@pytest.mark.parametrize("name", ["'<\"&\U0001f600", "/", "a"])
@pytest.mark.slow_beyond(1)
def test_the_gallery_keeps_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 150_000)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1600, 1, 12288), dtype=np.uint8)
    examples = [(f"{n}" + name * 4000, tokens, (1, 1, 1)) for n, tokens in enumerate(noise)]
    report = pack_arrays(examples, tmp_path / "set", Layout(40, 40, (1, 64, 64)))
    without = len(render_html(report).encode())
    for num_sequences in (1, 12, 40):
        gallery = gallery_of(tmp_path / "set", num_sequences)
        assert len(gallery["sequences"]) == num_sequences
        more = len(render_html(report, gallery).encode()) - without
        assert more <= 150_000
        for s in gallery["sequences"]:
            assert s["rest"]["num_examples"] + len(s["examples"]) == s["num_segments"] == 40
            assert s["rest"]["num_tokens"] + sum(e["num_tokens"] for e in s["examples"]) == s["num_tokens"]
        drawn = sum(bool(e["frames"]) for s in gallery["sequences"] for e in s["examples"])
        # what there is room for is used
        assert drawn and (more > 85_000 or drawn == 40 * num_sequences)


def test_a_sequence_of_very_many_examples_lists_the_first(tmp_path: Path) -> None:
    examples = [(f"{n}", np.full((1, 1), n % 256, np.uint8), (1, 1, 1)) for n in range(1000)]
    pack_arrays(examples, tmp_path / "set", Layout(1024, 1024, (1, 1, 1), channels=1))
    [s] = gallery_of(tmp_path / "set")["sequences"]
    assert len(s["examples"]) == module.MAX_LISTED
    assert [bool(e["frames"]) for e in s["examples"]] == [n < module.MAX_DRAWN for n in range(module.MAX_LISTED)]
    assert s["rest"] == {"num_examples": 744, "num_tokens": 744}
    assert "744 more examples of 744 tokens together" in page_of(tmp_path / "set", {"sequences": [s]})


def test_a_broken_shard_is_named(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "set")
    name = pq.read_table(tmp_path / "set" / "shards.parquet")["path"].to_pylist()[0]
    content = bytearray((tmp_path / "set" / name).read_bytes())
    content[300] ^= 1
    (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{name} row 0: digest is"):
        gallery_of(tmp_path / "set", 100)
    (tmp_path / "set" / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}: no such file; shards\.parquet lists it; "):
        gallery_of(tmp_path / "set", 1)


def test_the_command_shows_as_many_as_are_asked_for(packed: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for arguments, due in ((("--gallery", 2), 2), (("--gallery", 0), 0), ((), module.DEFAULT_SEQUENCES)):
        assert run("report", packed, "--html", path, *arguments).code == 0
        text = path.read_text()
        assert text.count("<details") == due and ('id="gallery"' in text) == bool(due)
    for number in (-1, module.MAX_SEQUENCES + 1):
        ended = run("report", packed, "--html", path, "--gallery", number)
        rule = "not a number of sequences for one page; that is 0 to 100; inspect shows any other"
        assert ended == Result(2, "", f"--gallery {number}: {rule}\n")
    ended = run("report", packed, "--gallery", 3)
    assert ended == Result(2, "", "--gallery 3: there is no page to show it in; it goes with --html; add that\n")
    told = " ".join(run("report", "--help").out.split())
    assert f"0 to {module.MAX_SEQUENCES} (default {module.DEFAULT_SEQUENCES})" in told
