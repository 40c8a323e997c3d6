"""What-if: what is predicted is what a build gives, inputs are probed once, and packers of the field are what they say."""

import dataclasses
import gc
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from support.media_files import photo, video
from support.packing_oracles import best_fit_one_by_one

import patchpack
from patchpack.options import typed_options
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import plan_transforms
from patchpack.pipeline.packing.field import FIELD_PACKERS, best_fit_decreasing, first_fit, next_fit
from patchpack.pipeline.recipes import with_recipe
from patchpack.pipeline.whatif.cost import training_flops
from patchpack.pipeline.whatif.engine import plan_examples
from patchpack.pipeline.whatif.examples import Examples
from patchpack.pipeline.whatif.settings import PACKERS, _Parser, parse_setting
from patchpack.schemas.geometry import Layout
from patchpack.schemas.manifest import read_shard_table

# several groups, so that rests are planned too
BASE: dict[str, Any] = {
    "sequence_length": 128,
    "group_size": 16,
    "resolution": "side:32-160",
    "clip_frames": 4,
    "workers": 1,
}
# one each: length, examples, another rule, dropped tokens, several layouts with views, aligned and in steps
SETTINGS = (
    "--sequence-length 300",
    "--max-segments 2",
    "--resolution native --oversize reject --max-tokens-per-example 40",
    "--drop-tokens beta:0.3,0.6 --views 2",
    "--patch-sizes 8,16,32 --views 2 --seed 5",
    "--balance-step 2 --align-tokens 4 --recipe vit --sequence-length 512",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, two clips, and what is none."""
    folder = tmp_path_factory.mktemp("whatif") / "photos"
    folder.mkdir()
    drawn = np.random.default_rng(0).integers(20, 400, (60, 2)).tolist()
    for number, (height, width) in enumerate(drawn):
        (folder / f"{number:02}.jpg").write_bytes(photo((height, width)))
    (folder / "broken.jpg").write_bytes(b"no image")
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_bytes(video())
    return folder


@pytest.fixture(scope="module")
def compared(photos: Path) -> Any:
    return patchpack.compare(photos, SETTINGS, **BASE)


def rows_of(made: Any, packer: str = "ours") -> list[Any]:
    return [row for row in made["rows"] if row["packer"] == packer]


def options_of(text: str) -> dict[str, Any]:
    """Returns the options of a setting, read by argparse alone."""
    parser = _Parser(prog="test")
    parser.add_options(PlanConfig)
    return with_recipe(typed_options(PlanConfig, parser.read(shlex.split(text))))


@pytest.mark.parametrize("number", range(len(SETTINGS) + 1))
@pytest.mark.slow_beyond(1)
def test_what_is_predicted_is_what_a_build_stores(compared: Any, photos: Path, tmp_path: Path, number: int) -> None:
    options = BASE | (options_of(SETTINGS[number - 1]) if number else {})
    made = patchpack.build(photos, tmp_path / "out", **options, max_reject_fraction=1.0)
    row, shards = rows_of(compared)[number], read_shard_table(str(tmp_path / "out"))
    for name in ("num_sequences", "num_segments", "num_tokens"):
        assert row[name] == sum(shards[name].to_pylist()), name
    assert row["padding_fraction"] == made["efficiency"]["padding_fraction"]
    cost = made["attention_cost_per_sequence"]["mean"]
    assert cost is not None and row["attention_cost"] == pytest.approx(cost * row["num_sequences"], rel=1e-12)
    # the same bound on what steps cost, of a dataset of its own --balance-step
    stored = made["step_balance"]["mean_max_over_mean"]
    assert row["balanced_max_over_mean"] == (None if stored is None else pytest.approx(stored))
    assert compared["num_inputs"] == made["totals"]["num_inputs"]
    assert compared["num_rejected_inputs"] == 1


def test_several_settings_probe_each_input_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    probe = plan_transforms.probe

    def counted(source: Any, *more: Any) -> Any:
        # Beam copies functions, so that a list of this test would stay empty
        with open(seen, "a") as file:
            file.write(f"{source.key}\n")
        return probe(source, *more)

    monkeypatch.setattr(plan_transforms, "probe", counted)
    patchpack.compare(photos, ["--sequence-length 256", "--views 3"], **BASE)
    probed = seen.read_text().split()
    assert len(probed) == len(set(probed)) == 63


@pytest.mark.slow
def test_a_saved_plan_and_a_dataset_give_the_same_rows(compared: Any, photos: Path, tmp_path: Path) -> None:
    patchpack.plan(photos, tmp_path / "plan", **BASE)
    made = patchpack.compare([], SETTINGS, saved=tmp_path / "plan")
    assert made == compared
    patchpack.build([], tmp_path / "plan", resume=True, max_reject_fraction=1.0)
    assert patchpack.compare([], SETTINGS, saved=tmp_path / "plan") == compared


def test_what_a_saved_plan_left_out_is_counted_and_said(
    photos: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    patchpack.plan(photos, tmp_path / "plan", **BASE, oversize="reject", max_tokens_per_example=40)
    made = patchpack.compare([], ["--sequence-length 256"], saved=tmp_path / "plan")
    assert made["num_left_out"] > 0
    assert made["num_examples"] + made["num_left_out"] == 62
    assert made["num_rejected_inputs"] == 1
    said = run("plan", "--from", tmp_path / "plan", "--compare", "--sequence-length 256")
    assert f"{made['num_left_out']} more were over a limit of the saved plan" in said.out


@pytest.mark.slow
def test_several_shapes_of_a_table(photos: Path, run: Callable[..., Result], compared: Any) -> None:
    common = shlex.split("--sequence-length 128 --group-size 16 --resolution side:32-160 --clip-frames 4 --workers 1")
    asked = [word for setting in SETTINGS for word in ("--compare", setting)]
    as_json = run("plan", photos, *common, *asked, "--json")
    assert json.loads(as_json.out) == compared
    lines = run("plan", photos, *common, *asked).out.splitlines()
    table = [line for line in lines if line.split()[-1:] and any(f" {packer} " in line for packer in PACKERS)]
    assert len(table) == len(compared["rows"])
    assert table[0].startswith("> A  ours")
    assert not any(line.startswith(">") for line in table[1:])
    assert len({len(line.rstrip("* ")) // 4 for line in table}) <= 2  # columns stand below each other
    least = min(row["padding_fraction"] for row in compared["rows"])
    marked = [line for line in table if f"{least:.4f}*" in line]
    assert len(marked) == sum(row["padding_fraction"] == least for row in compared["rows"])


def test_a_packer_may_be_named(photos: Path) -> None:
    made = patchpack.compare(photos, ["--packer next-fit", "--sequence-length 256 --packer ours"], **BASE)
    packers = [(row["setting"], row["packer"]) for row in made["rows"]]
    assert packers == [*((0, packer) for packer in PACKERS), (1, "next-fit"), (2, "ours")]
    assert made["rows"][len(PACKERS)] | {"setting": 0} == made["rows"][1]


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("", "no options"),
        ("  ", "no options"),
        ("--squence-length 3", "--squence-length: no such option; the nearest is --sequence-length"),
        ("--sequence-length", "argument --sequence-length: expected one argument"),
        ("--sequence-length many", "argument --sequence-length: 'many' is not valid"),
        ("--sequence-length 0", "--sequence-length 0"),
        ("--sequence-length '12", "No closing quotation"),
        ("--packer knapsack", "argument --packer: knapsack: no such choice"),
        ("--resolution side:9-1", "--resolution side:9-1"),
        ("--recipe navti", "the nearest is navit"),
        ("--help", "--help: no such option"),
        ("--help-all", "--help-all: no such option"),
        ("--output elsewhere", "--output: no such option"),
        ("other/ --views 2", "other/: one argument too many"),
        ("-- x", "--: no such option"),
        ("--resolution '\x1b[31m<img src=x onerror=alert(1)>'", "no such rule"),
        ("--max-pixels 5", "--max-pixels: 5 here"),
        ("--exclude '*.png'", "--exclude: *.png here, left out of the base; it decides which inputs are listed"),
        ("--flip --flip=3", "argument --flip: ignored explicit argument '3'"),
        ("--fps 3", "--fps: 3.0 here, 8.0 of the base; it decides which frames a clip takes"),
    ],
)
def test_a_setting_that_cannot_be_is_named(photos: Path, run: Callable[..., Result], setting: str, part: str) -> None:
    said = run("plan", photos, "--workers", 1, "--compare", "--views 2", "--compare", setting)
    assert said.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(("--compare '", '--compare "'))
    assert part in said.err
    assert "\x1b" not in said.err


def test_what_decides_frames_may_differ_where_there_are_none(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo((60, 90)))
    made = patchpack.compare(tmp_path, ["--recipe sora", "--fps 3"], workers=1)
    assert [row["num_segments"] for row in rows_of(made)] == [1, 1, 1]


def test_other_wrong_requests_are_one_line(photos: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    for name, content in (("bad", b""), ("one", photo())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(content)
    for asked, part, code in (
        (("--compare", "--views 2"), "no inputs; plan takes", 2),
        (("--from", tmp_path), "there is nothing to compare it with", 2),
        (("--from", tmp_path, "--compare", "--views 2"), "no _plan/plan.json in it", 2),
        (("--from", tmp_path, "--views", 2, "--compare", "--views 2"), "--views beside it", 2),
        ((photos, "--from", tmp_path, "--compare", "--views 2"), "photos beside it", 2),
        ((photos, "--output", tmp_path / "o", "--compare", "--views 2"), "a comparison saves nothing", 2),
        ((photos, "--html", tmp_path / "x.html"), "x.html: a plan has no page; a comparison has; add --compare", 2),
        (
            (photos, "--html", tmp_path, "--compare", "--views 2"),
            "a folder; the comparison is one page; name a file",
            2,
        ),
        (
            (tmp_path / "one", "--workers", 1, "--html", tmp_path / "none/x.html", "--compare", "--views 2"),
            "none/x.html: cannot be written (No such file or directory); check the path",
            1,
        ),
        (
            (tmp_path / "bad", "--workers", 1, "--compare", "--views 2"),
            "nothing to compare, all 1 inputs were rejected",
            1,
        ),
    ):
        said = run("plan", *asked)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1), said
        assert part in said.err


def test_options_of_a_setting_win_over_the_base_and_over_its_recipe() -> None:
    base = PlanConfig(sequence_length=300, views=3)
    made = parse_setting("--recipe navit --max-segments 7", base).config
    assert (made.sequence_length, made.max_segments, made.views) == (1024, 7, 3)
    assert dataclasses.replace(base, views=1) == parse_setting("--views 1", base).config


# oracles: whole bins as lists, looked through anew for every example


def slow_next_fit(lengths: list[int], capacity: int, most: int) -> list[list[int]]:
    bins: list[list[int]] = [[]]
    for length in lengths:
        if sum(bins[-1]) + length > capacity or len(bins[-1]) + 1 > most:
            bins.append([])
        bins[-1].append(length)
    return bins


def slow_first_fit(lengths: list[int], capacity: int, most: int, open_bins: int) -> list[list[int]]:
    bins: list[list[int]] = []
    first_open = 0
    for length in lengths:
        fitting = [b for b in bins[first_open:] if sum(b) + length <= capacity and len(b) < most]
        if not fitting:
            if len(bins) - first_open == open_bins:
                first_open = len(bins)
            bins.append([])
            fitting = bins[-1:]
        fitting[0].append(length)
    return bins


def in_bins(lengths: list[int], bin_index: Any) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(max(bin_index) + 1)]
    for length, number in zip(lengths, bin_index, strict=True):
        bins[number].append(length)
    return bins


QUESTIONS = st.tuples(
    st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(12, 30), st.none() | st.integers(1, 5)
)


@given(QUESTIONS, st.integers(1, 4))
def test_packers_of_the_field_are_what_they_are_called(
    question: tuple[list[int], int, int | None], open_bins: int
) -> None:
    lengths, capacity, limit = question
    most = limit or len(lengths)
    assert in_bins(lengths, next_fit(lengths, capacity, limit)) == slow_next_fit(lengths, capacity, most)
    found = in_bins(lengths, first_fit(lengths, capacity, limit, open_bins=open_bins))
    assert found == slow_first_fit(lengths, capacity, most, open_bins)
    decreasing = in_bins(lengths, best_fit_decreasing(lengths, capacity, limit))
    assert len(decreasing) == best_fit_one_by_one(lengths, capacity, limit)
    assert all(sum(members) <= capacity and 1 <= len(members) <= most for members in decreasing)


def test_packers_of_the_field_take_nothing_and_refuse_what_is_too_long() -> None:
    for packer in FIELD_PACKERS.values():
        assert packer([], 5).tolist() == []
        with pytest.raises(ValueError, match="6"):
            packer([3, 6], 5)


def test_flops_are_those_of_the_weights_and_the_pairs() -> None:
    # ViT-B/16 on one image of 224 px: 17.5 billion multiply-adds (Dosovitskiy et al.; timm counts 17.58), and three passes
    layout = Layout(196, 1, (1, 16, 16))
    assert training_flops(layout, 1, 196**2) == pytest.approx(3 * 2 * 17.5e9, rel=0.01)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_search_for_cycles_rests_while_planning_and_is_then_as_it_was(was_on: bool) -> None:
    examples = Examples(["a", "b"], *(np.array([size, size]) for size in (0, 300, 200)))
    seen = []

    def stop(done: int) -> None:
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    try:
        if not was_on:
            gc.disable()
        assert plan_examples(examples, PlanConfig()).ours.num_segments == 2
        assert gc.isenabled() == was_on
        with pytest.raises(KeyboardInterrupt):
            plan_examples(examples, PlanConfig(), stop)
        assert seen == [False] and gc.isenabled() == was_on
    finally:
        gc.enable()
