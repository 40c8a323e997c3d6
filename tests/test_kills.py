"""Whatever is killed at whatever moment: one line, nothing left running, and --resume gives the same bytes."""

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, said
from support.accounts import OPTIONS, Undisturbed, accounted, contents, leftovers, num_files
from support.family import Family

from patchpack.pipeline.stages import finish

Run = Callable[..., Result]

NUM_KILLS = 50


@pytest.mark.slow
def test_the_set_is_worth_killing(undisturbed: Undisturbed) -> None:
    names = undisturbed.contents
    assert len([name for name in names if name.startswith("sequences/")]) >= 6
    assert len([name for name in names if name.startswith("_plan/")]) >= 3


def kills() -> list[object]:
    """Returns who is killed and when, as a fraction of an undisturbed run."""
    draw, drawn = random.Random(15), []
    for number in range(NUM_KILLS):
        # one of each slice of the run, so that all of it is met, in no order
        moment = ((number * 21) % NUM_KILLS + draw.random()) / NUM_KILLS
        who = ("worker", "launcher", "both")[number % 3]
        drawn.append(pytest.param(who, moment, draw.random(), id=f"{who}-{moment:.2f}"))
    return drawn


@pytest.mark.parametrize(("who", "moment", "chance"), kills())
@pytest.mark.slow
def test_a_kill_costs_nothing_but_time(
    who: str,
    moment: float,
    chance: float,
    undisturbed: Undisturbed,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, temporary = tmp_path / "set", tmp_path / "temporary"
    temporary.mkdir()
    command = ("build", undisturbed.media, "--output", output, *OPTIONS)
    build = Family(*command, "--workers", 2, temporary=temporary)
    time.sleep(moment * undisturbed.wall_s)
    others = sorted(set(build.parents()) - {build.launcher.pid})
    if who == "both":
        os.killpg(build.launcher.pid, signal.SIGKILL)
    elif who == "launcher" or not others:
        build.launcher.kill()
    else:
        kill(others[int(chance * len(others))])
    _, err = build.launcher.communicate(timeout=30)
    if build.launcher.returncode == -signal.SIGKILL:
        assert said(err) == ""
    elif build.launcher.returncode:
        assert build.launcher.returncode == 1
        assert re.fullmatch(r"a worker process died \(.+\); run the same command with --resume\n", said(err)), err
    assert build.lives_after(5) == []

    # the page is not compared, and takes longer to draw than all the rest
    monkeypatch.setattr(finish, "page_of", lambda *_: "")
    ended = run(*command, "--workers", 1, "--resume")
    assert (ended.code, said(ended.err)) == (0, "")
    assert contents(output) == undisturbed.contents
    assert leftovers(output) == []
    assert list(temporary.iterdir()) == []
    assert run("verify", output).code == 0
    assert sum(accounted(output)) == num_files(undisturbed.media)


@pytest.mark.slow
@pytest.mark.parametrize("addresses_kb", [1_400_000, 1_800_000, 2_200_000])
def test_memory_that_runs_out_is_one_line_and_soon(addresses_kb: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    command = ("build", undisturbed.media, "--output", tmp_path / "set", "--workers", 2, *OPTIONS)
    build = Family(*command, addresses_kb=addresses_kb)
    _, err = build.launcher.communicate(timeout=30)
    assert build.launcher.returncode == 1
    # in the launcher's imports, or behind them
    assert re.fullmatch(r"(out of memory|Beam cannot be imported) \(.+\); .+\n", said(err)), err
    assert build.lives_after(5) == []


def kill(process: int) -> None:
    """Kills a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
