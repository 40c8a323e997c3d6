"""Advice is right: on made datasets with a known best change the first advice names it, and what it predicts is what a build gives."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

import patchpack
from patchpack.options import Parser, typed_options
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import plan_transforms
from patchpack.pipeline.report import words
from patchpack.pipeline.stages import saved, summary
from patchpack.pipeline.whatif import advice as module
from patchpack.pipeline.whatif.advice import duplicates

PATCH = 8
# one process, small tokens, and sizes as they are
COMMON: dict[str, Any] = {"workers": 1, "tubelet": (1, PATCH, PATCH), "resolution": "native", "sequence_length": 64}


def write_images(folder: Path, grids: list[tuple[int, int]], copies: int = 1) -> Path:
    """Writes images of so many patches high and wide, each of another content, and of each so many copies."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(grids):
        pixels = np.full((height * PATCH, width * PATCH, 3), rng.integers(0, 256, 3), np.uint8)
        pixels[0, :4] = rng.integers(0, 256, (4, 3))
        for copy in range(copies):
            Image.fromarray(pixels).save(folder / f"{copy}-{number:04}.png")
    return folder


def long_ones(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes examples of 35 to 40 tokens for sequences of 64: one in each."""
    return write_images(folder, [(5, 7 + n % 2) for n in range(48)]), {}


def many_small_ones(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes examples of 4 tokens, of which a sequence of 64 may hold 4."""
    return write_images(folder, [(2, 2)] * 160), {"max_segments": 4}


def one_giant(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes examples of 8 tokens, and one of 1,024 in a sequence of its own."""
    return write_images(folder, [(2, 4)] * 384 + [(32, 32)]), {"sequence_length": 1024, "max_segments": 256}


def copies(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes 20 images, of each 4 copies."""
    return write_images(folder, [(4, 4)] * 20, copies=4), {}


def small_sources(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes images of 16 px that are drawn with sides of 56 to 64 px."""
    return write_images(folder, [(2, 2)] * 40), {"resolution": "side:56-64"}


def uneven_ones(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Makes sequences of one example of 256 tokens, and as many of 32 examples of 8: full, and of very different cost."""
    return write_images(folder, [(16, 16)] * 16 + [(2, 4)] * 32 * 16), {"sequence_length": 256}


MADE: list[tuple[Callable[[Path], tuple[Path, dict[str, Any]]], str, str]] = [
    (long_ones, "length", "--sequence-length"),
    (many_small_ones, "segments", "--max-segments 16"),
    (one_giant, "giants", "--max-tokens-per-example 64"),
    (copies, "duplicates", "--dedupe digest"),
    (small_sources, "upsampled", "--upsample never"),
    (uneven_ones, "unbalanced", "--balance-step 8"),
]


def read_options(text: str) -> dict[str, Any]:
    parser = Parser(prog="test")
    parser.add_options(PlanConfig)
    return typed_options(PlanConfig, parser.parse_args(shlex.split(text)))


# the first stands for all where time is short
@pytest.mark.parametrize(
    ("make", "why", "options"),
    MADE,
    ids=[why for _, why, _ in MADE],
)
@pytest.mark.slow
def test_the_first_advice_names_the_best_change_and_a_build_with_it_is_as_predicted(
    tmp_path: Path, make: Callable[[Path], tuple[Path, dict[str, Any]]], why: str, options: str
) -> None:
    media, changed = make(tmp_path / "media")
    before = patchpack.build(media, tmp_path / "before", **COMMON | changed)
    assert before["advice"]
    first = before["advice"][0]
    assert first["why"] == why
    assert first["options"].startswith(options)
    assert len(before["advice"]) <= 3
    assert [one["gain"] for one in before["advice"]] == sorted((one["gain"] for one in before["advice"]), reverse=True)
    # on the same options, and the change typed over them
    changed |= read_options(first["options"])
    after = patchpack.build(media, tmp_path / "after", **COMMON | changed, max_reject_fraction=1.0)
    figures, later = before["efficiency"], after["efficiency"]
    assert first["padding_before"] == pytest.approx(figures["padding_fraction"])
    if why == "duplicates":
        assert first["share"] == 0.75 == after["totals"]["num_rejects"] / after["totals"]["num_inputs"]
    else:
        assert first["padding_after"] == pytest.approx(later["padding_fraction"])
        costs = [
            one["attention_cost_per_sequence"]["mean"] * one["totals"]["stored"]["num_sequences"]
            for one in (before, after)
        ]
        assert first["attention_ratio"] == pytest.approx(costs[1] / costs[0])
    assert 0 < first["time_ratio"] < 1
    if why == "unbalanced":
        assert first["step_before"] == pytest.approx(before["step_balance"]["random_by_ranks"]["8"])
        assert first["step_after"] == pytest.approx(after["step_balance"]["mean_max_over_mean"])
    # it is said on the terminal, on the page and in the file
    page = (tmp_path / "before" / "report.html").read_text()
    assert first["options"] in page
    assert words.reason(first) in page
    assert json.loads((tmp_path / "before" / "report.json").read_text())["advice"] == before["advice"]
    # what was advised is not advised again
    assert why not in [one["why"] for one in after["advice"] or []]


def test_a_good_dataset_gets_none(tmp_path: Path, run: Callable[..., Result]) -> None:
    # 64 tokens in four examples of 16, all alike
    media = write_images(tmp_path / "media", [(4, 4)] * 64)
    report = patchpack.build(media, tmp_path / "set", **COMMON)
    assert report["advice"] == []
    assert report["what_if"] is not None
    assert report["what_if"]["rows"][0]["padding_fraction"] == 0
    assert "No change that was tried would save" in (tmp_path / "set" / "report.html").read_text()
    assert "proven optimal" in run("report", tmp_path / "set").out


def test_a_change_that_saves_nothing_here_is_not_advised(tmp_path: Path) -> None:
    # a few enlarged ones: smaller, they would leave more room, and as many sequences
    media = write_images(tmp_path / "media", [(2, 2)] * 2 + [(8, 8)] * 6)
    report = patchpack.build(media, tmp_path / "set", **COMMON | {"resolution": "side:32-32"})
    assert report["sizes"] is not None and report["sizes"]["num_upscaled"] == 2
    made = report["what_if"]
    assert made is not None
    tried = next(at for at, setting in enumerate(made["settings"]) if setting["options"] == "--upsample never")
    base, row = made["rows"][0], next(row for row in made["rows"] if row["setting"] == tried)
    assert row["num_tokens"] < base["num_tokens"] and row["num_sequences"] == base["num_sequences"]
    assert report["advice"] == []


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.slow_beyond(1)
def test_without_a_saved_plan_there_is_none_and_the_page_says_so(
    tmp_path: Path, run: Callable[..., Result], is_damaged: bool
) -> None:
    media = write_images(tmp_path / "media", [(5, 7)] * 20)
    patchpack.build(media, tmp_path / "set", **COMMON)
    assert "--sequence-length" in run("report", tmp_path / "set").out
    if is_damaged:
        next((tmp_path / "set" / "_plan").glob("part-*")).write_bytes(b"half a plan")
    else:
        shutil.rmtree(tmp_path / "set" / "_plan")
    said = run("report", tmp_path / "set", "--html", tmp_path / "page.html")
    assert said.code == 0
    assert "--sequence-length" not in said.out
    assert (
        "No advice: this dataset has no saved plan that could be planned anew." in (tmp_path / "page.html").read_text()
    )


@pytest.mark.slow
def test_copies_are_estimated_by_content_over_all_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "HEADS", 100)
    monkeypatch.setattr(plan_transforms, "HEADS", 100)
    media = write_images(tmp_path / "media", [(1, 1)] * 400, copies=2)
    patchpack.plan(media, tmp_path / "plan", **COMMON, group_size=200)
    listing = saved.read_listing(str(tmp_path / "plan"))
    # some of the inputs are kept, and yet of each copy that is known the other is, too
    assert listing.num_inputs == 800 and len(listing.heads) == 100
    assert duplicates(str(tmp_path / "plan")) == 0.5


@pytest.mark.slow
def test_advice_comes_from_a_sample_of_a_large_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EXAMPLES", 50)
    media = write_images(tmp_path / "media", [(5, 7)] * 160)
    report = patchpack.build(media, tmp_path / "set", **COMMON, group_size=64)
    assert report["what_if"] is not None and report["advice"]
    assert 25 <= report["what_if"]["num_examples"] <= 50
    assert report["advice"][0]["why"] == "length"
    page = (tmp_path / "set" / "report.html").read_text()
    assert f"Predicted by planning {report['what_if']['num_examples']} of the same examples anew" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50.0 %"),
        (0.0004, "0.04 %"),
        (0.999996, "over 99.999 %"),
        (0.9996, "99.96 %"),
        (1e-9, "under 0.001 %"),
    ],
)
def test_percentages_are_never_rounded_to_nothing_or_all(value: float, said: str) -> None:
    assert words.percent(value) == said
