"""Recipes: the field's methods build, verify, report and train; a dataset's own recipe gives its very bytes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Result
from support.markup import timeless

import patchpack
from patchpack import command
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.recipes import names, read_recipe, with_recipe
from patchpack.trainer.cli import main as train
from patchpack.trainer.config import MODELS

Run = Callable[..., Result]
NAMES = ["flexivit", "mvit", "naflex", "navit", "pix2struct", "sora", "vit", "vivit"]
SHARED_MEDIA = ROOT.parent / "shared" / "media"


def test_the_eight_methods_are_shipped_and_every_line_has_its_reason() -> None:
    assert names() == NAMES
    for name in NAMES:
        text = (ROOT / f"pipeline/recipes/{name}.toml").read_text()
        assert re.match(r"# .*(arXiv \d{4}\.\d{5}|OpenAI 2024)", text)
        assert f'name = "{name}"' in text
        # each option, or run of options, has a comment above it
        body = text.partition("name = ")[2].splitlines()[1:]
        assert body[1].startswith("#")
        config = PlanConfig(**with_recipe({"recipe": name}))
        assert config.recipe_name == name and config.recipe is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("navit", {"resolution": "side:64-384~normal(-0.5,1)", "tubelet": (1, 16, 16), "max_segments": 64}),
        ("flexivit", {"resolution": "square:240", "patch_sizes": (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)}),
        ("naflex", {"resolution": "tokens:128,256,576,784,1024", "sequence_length": 1024}),
        ("pix2struct", {"resolution": "pix2struct:2048"}),
        ("vit", {"resolution": "square:224", "tubelet": (1, 16, 16)}),
        ("vivit", {"tubelet": (2, 16, 16), "clip_frames": 32, "frame_stride": 2}),
        ("mvit", {"tubelet": (3, 7, 7), "stride": (2, 4, 4), "grid_multiple": 8, "clip_frames": 16, "frame_stride": 4}),
        ("sora", {"resolution": "native", "tubelet": (2, 16, 16)}),
    ],
)
def test_a_recipe_has_the_numbers_of_its_paper(name: str, options: dict[str, object]) -> None:
    config = PlanConfig(**with_recipe({"recipe": name}))
    assert {option: getattr(config, option) for option in options} == options


def test_options_that_are_typed_win() -> None:
    options = with_recipe({"recipe": "vit", "sequence_length": 784, "seed": 7})
    assert (options["sequence_length"], options["seed"], options["resolution"]) == (784, 7, "square:224")
    assert "recipe" not in options and with_recipe({"seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sequence-length 5", r"no TOML \(.*\); it holds lines such as sequence-length = 1024"),
        (b"workers = 5", "workers is no option of what is written"),
        (b"seqence-length = 5", "seqence-length is no option of what is written"),
        (b"\xff", "it is a TOML file of options, or one of flexivit, "),
        (None, "No such file or directory; it is a TOML file of options, or one of flexivit, "),
    ],
)
def test_what_is_no_recipe_is_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--recipe {path}: .*{message}"):
        read_recipe(str(path))
    with pytest.raises(ValueError, match="the nearest is navit$"):
        read_recipe("navitt")


@pytest.mark.slow
def test_the_recipe_of_a_dataset_gives_its_very_bytes(media: Path, tmp_path: Path, run: Run) -> None:
    options = ("--workers", 1, "--labels", "folder", "--exclude", "*/0*", "--mean", "0.1,0.25,1", "--seed", 5)
    built = run("build", media, "--output", tmp_path / "one", "--recipe", "naflex", *options)
    assert built.code == 0 and built.out.partition("\n")[0].endswith(", recipe naflex")
    printed = run("report", tmp_path / "one", "--recipe")
    (tmp_path / "own.toml").write_text(printed.out)
    assert (
        run("build", media, "--output", tmp_path / "two", "--workers", 2, "--recipe", tmp_path / "own.toml").code == 0
    )
    pages = [timeless((tmp_path / name / "report.html").read_text()) for name in ("one", "two")]
    assert pages[0] == pages[1]
    for name in ("manifest.json", "shards.parquet", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one/report.json").read_text())["recipe"] == "naflex"
    assert "Recipe <b><bdi>naflex</bdi></b>" in (tmp_path / "one/report.html").read_text()
    with pytest.raises(ValueError, match="a config holds options, and no recipe"):
        patchpack.BuildConfig(recipe="vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_builds_and_trains_on_real_media(name: str, tmp_path: Path) -> None:
    if not SHARED_MEDIA.is_dir():
        pytest.skip(f"no {SHARED_MEDIA}: real photos and clips are not in the repository")
    out = tmp_path / "out"
    options = ("--recipe", name, "--workers", "2", "--labels", "folder")
    assert command.main(["build", str(SHARED_MEDIA), "--output", str(out), *options]) == 0
    assert patchpack.verify(out) == []
    assert json.loads((out / "report.json").read_text())["recipe"] == name
    # by its own model, where there is one
    model = name if name in MODELS else "navit"
    small = ("--steps", "1", "--batch-size", "1", "--dim", "16", "--depth", "4", "--heads", "1", "--device", "cpu")
    for layout in range(len(json.loads((out / "manifest.json").read_text())["layouts"])):
        assert train([str(out), *small, "--model", model, "--layout", str(layout)]) == 0
