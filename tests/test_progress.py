"""Progress: few lines in a log, a bar on a terminal, and what is counted there."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import progress
from patchpack.pipeline.execution.progress import Amount, Progress
from patchpack.pipeline.execution.stage import Writing, planning


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Keeps what a terminal would be sent."""

    def isatty(self) -> bool:
        return True


def seen(out: io.StringIO) -> list[str]:
    """Returns what stood in the line of a terminal, one after another, without its blocks and times."""
    states = [text.strip() for text in out.getvalue().split("\r") if text.strip()]
    return [re.sub(r"\|.*?\|", "|", re.sub(r"\d\d:\d\d", "MM:SS", state)) for state in states]


def test_a_log_says_what_is_done_of_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 30.0)
    out, clock = io.StringIO(), Clock()
    shown = Progress(out, clock)
    amount = Amount("writing shards", "examples", 500, 2000, before=500, token_bytes=0, num_rejects=1)
    shown.show(amount)
    clock.now += 29.0
    shown.show(amount._replace(done=700))
    assert out.getvalue() == ""
    clock.now += 1.0
    shown.show(amount._replace(done=800, token_bytes=60_000_000, num_rejects=3))
    clock.now += 29.0
    shown.show(amount._replace(done=900))
    # of the 500 that were there before the speed knows nothing: 300 in 30 s, and 1200 are left
    text = "writing shards: 800 of 2,000 examples, after 00:30, 10.0 examples/s, 2.0 MB/s of tokens, 3 rejects, 02:00 to go"
    assert out.getvalue() == f"{text}\n"


def test_the_start_of_workers_slows_nothing_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 10.0)
    out, clock = io.StringIO(), Clock()
    shown = Progress(out, clock)
    for done in (0, 0, 0, 20):
        shown.show(Amount("probing", "inputs", done, 100))
        clock.now += 10.0
    assert out.getvalue().splitlines() == [
        "probing: 0 of 100 inputs, after 00:10",
        "probing: 0 of 100 inputs, after 00:20",
        "probing: 20 of 100 inputs, after 00:30, 2.0 inputs/s, 00:40 to go",
    ]


def test_a_log_has_a_line_every_30_seconds_though_every_stage_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 30.0)
    out, clock = io.StringIO(), Clock()
    shown = Progress(out, clock)
    shown.show(Amount("listing", "inputs", 10, num_rejects=0))
    clock.now += 20.0
    shown.show(Amount("probing", "inputs", 0, 4000, num_rejects=0))
    clock.now += 20.0
    shown.show(Amount("probing", "inputs", 1000, 4000, num_rejects=1))
    assert out.getvalue() == "probing: 1,000 of 4,000 inputs, after 00:20, 50.0 inputs/s, 1 rejects, 01:00 to go\n"


def test_a_terminal_shows_what_takes_longer_than_two_seconds() -> None:
    out, clock = Terminal(), Clock()
    shown = Progress(out, clock)
    amount = Amount("writing shards", "examples", 1500, 2000, before=1500, token_bytes=0, num_rejects=7)
    shown.show(amount)
    clock.now += 1.9
    shown.show(amount._replace(done=1501))
    assert out.getvalue() == ""
    clock.now += 2.1
    shown.show(amount._replace(done=1750, token_bytes=10_000_000))
    assert seen(out)[-1] == (
        "writing shards:  88%| 1750 of 2000 examples [MM:SS, 62.5 examples/s, 2.5 MB/s of tokens, 7 rejects, MM:SS to go]"
    )
    before = len(out.getvalue())
    shown.close()
    taken_away = out.getvalue()[before:]
    assert taken_away and not taken_away.strip()


def test_a_terminal_begins_anew_with_each_stage() -> None:
    out, clock = Terminal(), Clock()
    shown = Progress(out, clock)
    for done in (1, 301):
        shown.show(Amount("listing", "inputs", done, num_rejects=0))
        clock.now += 3.0
    assert seen(out)[-1] == "listing: 301 inputs [MM:SS, 100.3 inputs/s, 0 rejects]"
    shown.show(Amount("probing", "inputs", 1, 300, num_rejects=0))
    assert "probing" not in out.getvalue()
    clock.now += 3.0
    shown.show(Amount("probing", "inputs", 30, 300, num_rejects=2))
    assert seen(out)[-1].startswith("probing:  10%| 30 of 300 inputs [MM:SS, 10.0 inputs/s, 2 rejects, MM:SS to go]")
    shown.close()


def test_work_that_counts_one_thing_says_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with progress.bar("verifying", 2000, "sequences", out=out) as advance:
        advance(250)
    first, second = out.getvalue().splitlines()
    assert first == "verifying: 0 of 2,000 sequences, after 00:00"
    assert re.fullmatch(r"verifying: 250 of 2,000 sequences, after 00:00, [\d,.]+ sequences/s, 00:00 to go", second)


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()], ids=["terminal", "log"])
def test_a_runner_that_says_nothing_is_not_said_to_have_done_nothing(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 3.0)
    clock = Clock()
    shown = Progress(out, clock)
    for _ in range(2):
        shown.show(Amount("planning", "inputs", 0))
        clock.now += 3.0
    assert seen(out)[-1] == ("planning: [MM:SS]" if out.isatty() else "planning: after MM:SS")
    shown.close()


def test_planning_is_shown_stage_by_stage() -> None:
    config = PlanConfig()
    assert planning(Counter(), config) == Amount("planning", "inputs", 0)
    counts = Counter({"num_inputs": 12, "num_rejects": 1})
    assert planning(counts, config) == Amount("planning (listing)", "inputs", 12, num_rejects=1)
    counts.update({"num_probed": 5})
    assert planning(counts, config) == Amount("planning (probing)", "inputs", 5, 12, num_rejects=1)
    counts.update({"num_probed": 6, "num_sampled": 8})
    assert planning(counts, config) == Amount("planning (sampling)", "examples", 8, num_rejects=1)
    counts.update({"num_sampled": 12, "num_groups": 1})
    assert planning(counts, config) == Amount("planning (packing)", "examples", 0, 20, num_rejects=1)
    counts.update({"num_planned": 15})
    assert planning(counts, config) == Amount("planning (packing)", "examples", 15, 20, num_rejects=1)


def test_how_many_inputs_are_of_this_split_is_not_known() -> None:
    config = PlanConfig(split="train:0.9,val:0.1", split_name="train")
    counts = Counter({"num_inputs": 12, "num_probed": 5})
    assert planning(counts, config) == Amount("planning (probing)", "inputs", 5, None, num_rejects=0)


def writing(folder: Path, *, lists: bool) -> Writing:
    """Returns the progress of four shards of 200 examples."""
    (folder / "sequences").mkdir()
    planned: Any = {"num_segments": 200, "num_shards": 4}
    plan: Any = {"totals": {"num_rejects": 7, "planned": planned}, "earlier": []}
    return Writing(str(folder), plan, lists=lists)


def test_what_an_earlier_run_has_written_is_done_and_says_nothing_of_the_speed(tmp_path: Path) -> None:
    shown = writing(tmp_path, lists=False)
    assert shown.amount(Counter()) == Amount("writing shards", "examples", 0, 200, 0, 0, 7)
    # the kept shard has ten examples and lacks two; of the 20 that came next one failed
    counts = Counter({"num_kept_shards": 1, "num_kept_examples": 10, "num_kept_rejects": 2})
    counts.update({"num_examples": 19, "num_token_bytes": 500, "num_rejects": 1})
    assert shown.amount(counts) == Amount("writing shards", "examples", 32, 200, 12, 500, 10)
    # a shard that was tried again
    assert shown.amount(Counter({"num_examples": 1000})).done == 200
    # workers say what they do: nobody lists the output meanwhile
    (tmp_path / "sequences/part-000-00000-00000.parquet").touch()
    assert shown.amount(Counter()).done == 0
    assert shown.amount(Counter({"num_examples": 198, "num_counted_shards": 3})) == Amount("finishing", "shards", 3, 4)


def test_a_runner_that_counts_nothing_is_watched_by_its_shards(tmp_path: Path) -> None:
    shown = writing(tmp_path, lists=True)
    for name in (
        "part-000-00000-00000.parquet",
        "part-000-00001-00000.parquet",
        ".part-000-00001-00001.parquet.abc.tmp",
    ):
        (tmp_path / "sequences" / name).touch()
    assert shown.amount(Counter()).done == 100
    assert shown.amount(Counter({"num_examples": 150})).done == 150


def test_every_line_can_be_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 30)
    progress.log_as_json(on=True)
    try:
        clock = Clock()
        shown = Progress(clock=clock)
        shown.show(Amount("writing shards", "examples", 1, 9))
        clock.now += 31
        shown.show(Amount("writing shards", "examples", 3, 9, num_rejects=1))
        progress.warn("two\nlines of s3://a:secret@b/c")
        progress.say("no \x1b[31m red", "error")
    finally:
        progress.log_as_json(on=False)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time")) for line in lines)
    assert lines[0] == {
        **{"level": "info", "work": "writing shards", "unit": "examples", "done": 3, "total": 9, "before": 0},
        **{"token_bytes": 0, "num_rejects": 1, "elapsed_s": 31.0},
    }
    assert lines[1]["level"] == "warning" and "secret" not in lines[1]["message"]
    assert lines[2] == {"level": "error", "message": "no \x1b[31m red"}


def test_a_command_fails_in_json_where_it_is_asked_to(run: Callable[..., Result], tmp_path: Path) -> None:
    failed = run("build", tmp_path / "none", "--output", tmp_path / "set", "--log-json")
    assert failed.code == 2
    entry = json.loads(failed.err)
    assert entry["level"] == "error" and entry["message"].startswith(f"{tmp_path}/none: no such file or folder")
