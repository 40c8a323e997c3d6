"""Options: a field is an option, with its help, its default and its reader, and nothing is written down twice."""

import dataclasses
from dataclasses import dataclass

import pytest

from patchpack.options import Parser, amount, option, output_affecting, typed_options


def _pair(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split("x"))
    if len(values) != 2:
        raise ValueError(f"{len(values)} numbers; it takes 2")
    return values


@dataclass(frozen=True)
class Config:
    """A command with one option of every kind."""

    path: str
    grid_size: tuple[int, ...] = option(
        (2, 3), "how many 100% squares", section="size", common=True, parse=_pair, metavar="HxW"
    )
    colour: str = option("red", "which colour", section="look", common=True, choices=("red", "blue"))
    limit: int | None = option(None, "at most so many", section="size")
    start: int = option(0, "the first", section="size", common=True)
    share: float = option(0.5, "how much", section="size", default_shown="half")
    leave_out: tuple[str, ...] = option((), "what is left out", section="look", metavar="GLOB", repeat=True)
    kept: tuple[str, ...] = option(
        ("a", "b"), "what is kept", section="look", common=True, repeat=True, affects_output=False
    )
    loud: bool = option(False, "say more", section="look", common=True, affects_output=False)
    neat: bool = option(True, "draw straight lines", section="look")


def read(*typed: str) -> Config:
    """Returns what a command line stands for."""
    parser = Parser(prog="draw")
    parser.add_options(Config)
    return Config(path="here", **typed_options(Config, parser.read(typed)))


def test_without_options_every_default_holds() -> None:
    assert read() == Config("here")


def test_what_is_typed_is_read() -> None:
    typed = ["--grid-size", "4x5", "--colour", "blue", "--limit", "7", "--start", "-3", "--loud"]
    assert read(*typed) == Config("here", (4, 5), "blue", 7, -3, loud=True)


def test_a_repeated_option_collects() -> None:
    assert read("--leave-out", "*.gif").leave_out == ("*.gif",)
    assert read("--leave-out", "*.gif", "--leave-out", "a/*").leave_out == ("*.gif", "a/*")
    assert read().leave_out == (), "one parse leaves nothing behind for the next"
    assert read("--kept", "c").kept == ("a", "b", "c")


def test_of_other_options_the_last_one_holds() -> None:
    assert read("--start", "1", "--start", "2").start == 2


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--start", "x"), "argument --start: 'x' is not valid (invalid literal for int() with base 10: 'x')"),
        (("--limit", "1.5"), "argument --limit: '1.5' is not valid (invalid literal for int() with base 10: '1.5')"),
        (("--grid-size", "4"), "argument --grid-size: '4' is not valid (1 numbers; it takes 2)"),
        (
            ("--start", "4\n5"),
            "argument --start: '4\\n5' is not valid (invalid literal for int() with base 10: '4\\n5')",
        ),
        (("--start",), "argument --start: expected one argument"),
        (("--sta", "1"), "--sta: no such option; the nearest is --start"),
        (("--coluor=red",), "--coluor: no such option; the nearest is --colour"),
        (("--elephant", "x"), "--elephant: no such option"),
        (("x", "--loud"), "x: one argument too many"),
        (("--loud=1",), "argument --loud: ignored explicit argument '1'"),
    ],
)
def test_a_wrong_option_ends_with_exit_2_and_one_line(
    typed: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(*typed)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"{told}; see draw --help\n"
    assert printed.out == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("300000", 300_000),
        ("256MB", 256_000_000),
        ("256 mb", 256_000_000),
        ("1.5GiB", 3 * 2**29),
        ("4k", 4_000),
        ("4Ki", 4_096),
        ("2T", 2 * 10**12),
        ("120MP", 120_000_000),
        ("120000px", 120_000),
    ],
)
def test_an_amount_may_have_a_unit(text: str, value: int) -> None:
    assert amount(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e6", "1.5", "0.0001kB", "4 apples", "1,000", "inf", "5KMB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^it is "):
        amount(text)


def test_a_choice_that_is_none_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--colour", "green")
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line == "argument --colour: green: no such choice; it takes red, blue; see draw --help\n"


def shown(flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the lines of the help behind the description."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        read(flag)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.split()) for line in lines[lines.index("size:") :] if line]


def test_help_shows_the_common_options_by_section_with_their_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown("--help", capsys, monkeypatch) == [
        "size:",
        "--grid-size HxW how many 100% squares (default 2,3)",
        "--start N the first (default 0)",
        "look:",
        "--colour {red,blue} which colour (default red)",
        "--kept KEPT what is kept (default a,b)",
        "--loud say more",
    ]


def test_help_all_shows_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("--help-all", capsys, monkeypatch)
    assert lines[:5] == [
        "size:",
        "--grid-size HxW how many 100% squares (default 2,3)",
        "--limit N at most so many",
        "--start N the first (default 0)",
        "--share X how much (default half)",
    ]
    assert "--leave-out GLOB what is left out" in lines
    assert "--neat, --no-neat draw straight lines (default True)" in lines


def test_only_options_that_affect_the_output_are_recorded() -> None:
    assert output_affecting(read("--limit", "7", "--leave-out", "x")) == {
        "grid_size": [2, 3],
        "colour": "red",
        "limit": 7,
        "start": 0,
        "share": 0.5,
        "leave_out": ["x"],
        "neat": True,
    }
    changed = dataclasses.replace(read(), loud=True, kept=(), path="there")
    assert output_affecting(changed) == output_affecting(read())
