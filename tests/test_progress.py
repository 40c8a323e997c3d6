"""Progress in a log: few lines, and what is counted."""

import io

import pytest

from patchpack.pipeline.execution import progress


def test_a_log_tells_what_is_done_of_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with progress.bar("writing shards", 2000, "examples", out=out) as tell:
        tell(250)
        tell(1250)
    assert (
        out.getvalue() == "writing shards: 250 of 2,000 examples, 0 s\nwriting shards: 1,250 of 2,000 examples, 0 s\n"
    )


def test_a_terminal_counts_what_was_done_before_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: made.update(options) or plain(**options))
    with progress.bar("writing shards", 2000, "examples", 1500, out=Terminal()) as tell:
        tell(1750)
    assert (made["initial"], made["total"], made["unit"]) == (1500, 2000, " examples")
