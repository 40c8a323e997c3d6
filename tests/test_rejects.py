"""Rejects of any number: sorted with runs in files, counted one by one."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs import OPTIONS, picture

from patchpack.pipeline.execution.checks import Rejected
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.stages import rejects
from patchpack.pipeline.stages.records import PARTIAL_VIDEO, Reject
from patchpack.schemas.manifest import REJECT_TABLE_SCHEMA

Run = Callable[..., Result]
KINDS = [("probe", "broken"), ("probe", "unreadable"), ("dedupe", "duplicate"), PARTIAL_VIDEO, ("write", "not_found")]
ROWS = st.builds(
    lambda key, kind, detail: Reject(key, *kind, detail),
    st.sampled_from(["a", "b", "ü/1.jpg", "𝛑", "A", "a\n"]),
    st.sampled_from(KINDS),
    st.sampled_from(["", "x", "y\0"]),
)


@settings(max_examples=60)
@given(st.lists(ROWS, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_rows_are_sorted_and_once_however_many_runs_they_take(rows: list[Reject], run: int, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejects, "RUN", run)
        patch.setattr(rejects, "BATCH", batch)
        with rejects.SortedRejects() as found:
            found.add(rows[:7])
            found.add(iter(rows[7:]))
            assert [*found] == sorted(set(rows))


def test_no_more_than_a_run_is_held_and_its_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "RUN", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with rejects.SortedRejects() as found:
        for number in range(95):
            found.add([Reject(f"{number * 37 % 95:02}", "probe", "broken", "")])
        assert len(found._rows) == 5
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 9
        assert [row.key for row in found] == [f"{number:02}" for number in range(95)]
    assert not list(tmp_path.iterdir())


def test_few_rows_touch_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with rejects.SortedRejects() as found:
        found.add([Reject("b", "probe", "broken", ""), Reject("a", "probe", "broken", "")])
        assert [row.key for row in found] == ["a", "b"]


@settings(max_examples=60)
@given(st.lists(ROWS, max_size=40))
def test_counts_are_those_of_the_whole_list(rows: list[Reject]) -> None:
    ordered = sorted(set(rows))
    counted = RejectCounts.of(pa.Table.from_pylist([row._asdict() for row in ordered], schema=REJECT_TABLE_SCHEMA))
    assert counted.num_rejects == len(ordered)
    assert counted.num_inputs == len({row.key for row in ordered if (row.stage, row.reason) != PARTIAL_VIDEO})
    by_kind = counted.by_kind()
    expected = Counter((row.stage, row.reason) for row in ordered)
    assert {(one["stage"], one["reason"]): one["num_rejects"] for one in by_kind} == expected
    assert [(-one["num_rejects"], one["stage"], one["reason"]) for one in by_kind] == sorted(
        (-count, *kind) for kind, count in expected.items()
    )
    for one in by_kind:
        keys = {row.key for row in ordered if (row.stage, row.reason) == (one["stage"], one["reason"])}
        assert one["sample_keys"] == sorted(keys)[:3]
    # files of buckets: each key in one of them
    bucketwise = sorted(ordered, key=lambda row: (len(row.key), row))
    again, checked = RejectCounts(), Rejected(bucketwise)
    again.add(bucketwise)
    assert (again.num_inputs, again.by_kind()) == (counted.num_inputs, by_kind)
    lost = [row for row in ordered if row.reason in ("unreadable", "not_found")]
    bad = [row for row in ordered if row.reason != "duplicate" and (row.stage, row.reason) != PARTIAL_VIDEO]
    for inputs, among in ((checked.all, ordered), (checked.unreadable, lost), (checked.bad, bad)):
        assert inputs.number == len({row.key for row in among})
        assert inputs.first == min(among, default=None)


def test_a_build_has_the_same_rejects_however_many_runs_they_take(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    for number in range(30):
        (tmp_path / f"media/{number}.png").write_bytes(picture(number) if number % 3 else b"broken")
    for name, most in (("one", 1000), ("many", 2)):
        monkeypatch.setattr(rejects, "RUN", most)
        options = (*OPTIONS, "--max-reject-fraction", 1)
        assert run("build", tmp_path / "media", "--output", tmp_path / name, *options).code == 0
    for name in ("rejects.parquet", "report.json", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    keys = pq.read_table(tmp_path / "many/rejects.parquet")["key"].to_pylist()
    assert keys == sorted(f"media/{number}.png" for number in range(0, 30, 3))
