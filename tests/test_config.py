"""The options of plan and build: all documented, every rule reported in one line, the record of a build complete."""

import argparse
import dataclasses
import json
import os
import re
from typing import Any

import pytest

from patchpack.options import Parser, output_affecting, typed_options
from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.rules import default_workers
from patchpack.schemas import Layout


def make_parser() -> Parser:
    """Returns a parser of build's options that does not wrap its help."""
    parser = Parser(
        prog="build", formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=60, width=10_000)
    )
    parser.add_options(BuildConfig)
    return parser


def as_typed(value: Any) -> str:
    """Returns a value as a user types it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_help_shows_every_option_with_its_default() -> None:
    parser = make_parser()
    parser.show_all()
    lines = [" ".join(line.split()) for line in parser.format_help().splitlines()]
    for field in dataclasses.fields(BuildConfig):
        if "help" not in field.metadata:  # which split and recipe this is, said by others
            continue
        name = "--" + field.name.replace("_", "-")
        line = next(line for line in lines if re.match(rf"{name}( |$)", line))
        assert field.metadata["help"] in line
        if field.default is not False and field.default not in (None, ()):
            default = field.metadata["default_shown"] or as_typed(field.default)
            assert line.endswith(f"(default {default})"), line


def test_every_default_can_be_typed_and_passes_the_check() -> None:
    typed = []
    for field in dataclasses.fields(BuildConfig):
        if field.default not in (None, (), False):
            typed += ["--" + field.name.replace("_", "-"), as_typed(field.default)]
    config = BuildConfig(**typed_options(BuildConfig, make_parser().read(typed)))
    assert config == BuildConfig()


def test_build_takes_every_option_of_plan_with_the_same_default() -> None:
    plan = {field.name: (field.default, field.metadata) for field in dataclasses.fields(PlanConfig)}
    build = {field.name: (field.default, field.metadata) for field in dataclasses.fields(BuildConfig)}
    assert plan.items() <= build.items()
    assert build.keys() - plan.keys() == {"resume", "overwrite", "retry_rejects", "append", "from_plan"}


def test_the_record_leaves_out_only_what_cannot_change_a_byte() -> None:
    recorded = output_affecting(BuildConfig())
    names = {field.name for field in dataclasses.fields(BuildConfig)}
    assert names - recorded.keys() == {
        "workers", "classes", "recipe", "recipe_name", "media_root", "retry_rejects", "resume", "overwrite", "append", "from_plan",
        "max_reject_fraction", "decode_cache_bytes", "decode_isolation", "decode_timeout_s"
    }  # fmt: skip
    assert json.loads(json.dumps(recorded)) == recorded
    # so that a build goes on from a saved plan
    assert recorded == output_affecting(PlanConfig())


def test_the_layout_is_what_the_options_say() -> None:
    config = PlanConfig(sequence_length=32, max_segments=3, tubelet=(2, 4, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 1))
    assert config.layouts[0] == Layout(32, 3, (2, 4, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 1))
    assert config.token_cap == 32
    assert PlanConfig(sequence_length=32, max_tokens_per_example=20).token_cap == 20


def test_the_default_of_workers_is_the_cores_of_this_process() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert default_workers() == len(os.sched_getaffinity(0))
    assert default_workers() >= 1


LEAST = [
    ("sequence_length", "no token fits", "1024"),
    ("max_segments", "no example fits", "64"),
    ("max_tokens_per_example", "no example fits", "the sequence length"),
    ("clip_frames", "a clip is empty", "16"),
    ("frame_stride", "no frame follows", "--fps"),
    ("clips_per_video", "videos give nothing", "1"),
    ("views", "nothing is written", "1"),
    ("limit", "nothing is taken", "all"),
    ("group_size", "a group is empty", "16384"),
    ("max_bytes", "everything is rejected", "268435456"),
    ("shard_bytes", "a shard is empty", "256000000"),
    ("balance_step", "a step is empty", "none"),
    ("max_pixels", "everything is rejected", "120000000"),
    ("workers", "nothing runs", str(default_workers())),
]
INFINITY = float("inf")
NAN = float("nan")
RULES: list[tuple[dict[str, Any], str]] = [
    (
        {name: value},
        f"--{name.replace('_', '-')} {value}: {harm}; the least is 1; leave it out for {default}",
    )
    for name, harm, default in LEAST
    for value in (0, -5)
]
RULES += [
    ({"fps": fps}, f"--fps {fps}: no frame is ever due; it is a number over 0; leave it out for 8")
    for fps in (0.0, -1.0, INFINITY, NAN)
]
RULES += [
    (
        {"frame_stride": 2, name: value},
        f"--frame-stride 2 {option} {value}: the one takes every N-th frame whatever the rate of the source, "
        "the other goes by that rate; give at most one; leave the other out",
    )
    for name, option, value in (("fps", "--fps", 4.0), ("slow_source", "--slow-source", "native"))
]
RULES += [
    (
        {"decode_cache_bytes": -1},
        "--decode-cache-bytes -1: no amount of memory; the least is 0; leave it out for 256000000",
    )
]
RULES += [
    (
        {"max_reject_fraction": fraction},
        f"--max-reject-fraction {fraction}: not a fraction; it lies in 0..1; leave it out for 0.01",
    )
    for fraction in (-0.1, 1.5, NAN)
]
RULES += [
    (
        {"mean": mean, "std": std},
        "--mean {} --std {}: not of pixels scaled to 0..1; mean lies in 0..1, and std does, too, and is over 0; "
        "divide those of 0..255 by 255, or leave them out for 0.5".format(
            *(",".join(f"{x:g}" for x in values) for values in (mean, std))
        ),
    )
    for mean, std in [
        ((0.5, 0.5, 0.5), (1.0, 0.0, 1.0)),
        ((123.0, 117.0, 104.0), (1.0, 1.0, 1.0)),
        ((0.5, 0.5, 0.5), (58.4, 57.1, 57.4)),
        ((0.5, 0.5, 0.5), (1.0, NAN, 1.0)),
        ((0.5, 0.5, 0.5), (1.0, INFINITY, 1.0)),
        ((NAN, 0.5, 0.5), (1.0, 1.0, 1.0)),
    ]
]
RULES += [
    (
        {"decode_timeout_s": seconds, "decode_isolation": "process"},
        f"--decode-timeout-s {seconds}: nothing is ever done, or nothing ever late; "
        "it is a number of seconds over 0; leave it out for 60",
    )
    for seconds in (0.0, -1.0, INFINITY, NAN)
]
RULES += [
    (
        {"decode_timeout_s": 5.0},
        "--decode-timeout-s 5.0: a decoder inside the worker cannot be stopped; "
        "the limit needs a process of its own; add --decode-isolation process, or leave it out",
    ),
    (
        {"tubelet": (1, 0, 16)},
        "--tubelet 1,0,16: an empty block; every side is at least 1; leave it out for 1,16,16",
    ),
    (
        {"max_segments": 32768},
        "--max-segments 32768: too many; segment ids are int16, so at most 32767; choose fewer",
    ),
    (
        {"max_tokens_per_example": 1025},
        "--max-tokens-per-example 1025: over --sequence-length 1024; "
        "an example lies in one sequence; lower it or raise --sequence-length",
    ),
    (
        {"sequence_length": 30000, "tubelet": (8, 128, 128)},
        "--sequence-length 30000 with --tubelet 8,128,128: 11796480000 bytes a sequence; "
        "pyarrow reads back at most 268435455; choose a shorter sequence or a smaller tubelet",
    ),
    (
        {"labels": "folders"},
        "--labels folders: no source of labels; it is folder, a .csv or .tsv file of keys and labels, or none; the nearest is folder",
    ),
    (
        {"resolution": "side:9-8"},
        "--resolution side:9-8: no such rule; it is side:LO-HI with 1 <= LO <= HI in px; leave it out for side:64-256",
    ),
    (
        {"resume": True, "overwrite": True},
        "--resume --overwrite: one keeps what the other deletes; give at most one; "
        "--resume goes on, --overwrite starts anew",
    ),
]


@pytest.mark.parametrize(("values", "message"), RULES, ids=lambda part: None if isinstance(part, str) else str(part))
def test_every_rule_is_told_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        BuildConfig(**values)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"sequence_length": 1},
        {"max_segments": 32767},
        {"max_tokens_per_example": 1024},
        {"max_reject_fraction": 0.0},
        {"max_reject_fraction": 1.0},
        {"shard_bytes": 1},
        {"resolution": "native"},
        {"seed": -1},
        {"resume": True},
        {"overwrite": True},
    ],
    ids=str,
)
def test_the_edge_of_every_rule_is_allowed(values: dict[str, Any]) -> None:
    config = BuildConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--tubelet 1,16", "argument --tubelet: '1,16' is not valid (2 numbers; it takes 3, separated by commas)"),
        ("--mean 0.5", "argument --mean: '0.5' is not valid (1 numbers; it takes 3, separated by commas)"),
        ("--fps fast", "argument --fps: 'fast' is not valid (could not convert string to float: 'fast')"),
    ],
)
def test_a_bad_number_ends_with_exit_2_and_one_line(typed: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().read(typed.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{told}; see build --help\n"


def test_exclude_may_be_given_several_times() -> None:
    values = make_parser().read(["--exclude", "*.gif", "--exclude", "a/*"])
    assert typed_options(BuildConfig, values)["exclude"] == ("*.gif", "a/*")
