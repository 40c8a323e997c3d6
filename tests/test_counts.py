"""What workers count: where the launcher finds it, and what stands in the record afterwards."""

import json
import queue
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics.execution import MetricKey, MetricResult
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.metrics.metricbase import MetricName
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult
from conftest import ROOT, SMALL
from conftest import Result as Ended

from patchpack.pipeline.execution import counts, folder
from patchpack.pipeline.stages import finish
from patchpack.schemas.run import WORK, StageTime

Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def own_counts() -> None:
    counts.begin()


def stages(output: Path) -> list[StageTime]:
    """Returns the stages in the record of a build."""
    return json.loads((output / "_run.json").read_text())["stages"]


def test_counts_are_handed_over_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "SEND_EVERY_S", 0.01)
    taken: queue.Queue[Counter[str]] = queue.Queue()
    counts.send(taken.put)
    assert taken.get(timeout=30) == {}
    counts.add(num_probed=2)
    counts.add(num_probed=1, probe_us=5)
    deadline = time.monotonic() + 30
    while (found := taken.get(timeout=30)) != {"num_probed": 3, "probe_us": 5}:
        assert time.monotonic() < deadline, found
    assert counts.own() == found


def test_the_same_counts_are_counters_of_beam() -> None:
    def work(number: int) -> int:
        with counts.timed("probe"):
            counts.add(num_probed=number)
        return sum(counts.each_timed("list", [number]))

    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    _ = pipeline | beam.Create([1, 20]) | beam.Map(work)
    of_beam = counts.of_result(pipeline.run())
    assert of_beam == counts.own()
    assert of_beam["num_probed"] == 21
    assert of_beam.keys() == {"num_probed", "probe_us", "list_us"}


def test_a_runner_that_says_nothing_fails_nothing() -> None:
    class Silent:
        def metrics(self) -> Any:
            raise NotImplementedError

    assert counts.of_result(Silent()) == {}  # type: ignore[arg-type]


def test_a_result_is_asked_anew_each_time() -> None:
    """As PortableRunner's, which keep their first answer."""
    done = [5]

    class Result(PipelineResult):
        kept: Any = None

        def metrics(self) -> Any:
            self.kept = self.kept or answer(done[0])
            return self.kept

    def answer(number: int) -> Any:
        counter = MetricResult(MetricKey("step", MetricName(counts.NAMESPACE, "num_probed")), None, number)
        return SimpleNamespace(query=lambda _: {"counters": [counter, counter]})

    result = Result("RUNNING")
    assert counts.of_result(result) == {"num_probed": 10}
    done[0] = 6
    # two steps of the graph count the same
    assert counts.of_result(result) == {"num_probed": 12}


@pytest.mark.slow
def test_the_record_keeps_time_by_stage_of_every_run(media: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "shards"
    (bad := tmp_path / "bad").mkdir()
    (bad / "broken.jpg").write_text("broken")
    command = ("build", *sorted(media.iterdir()), bad, "--output", output, "--workers", 1, *SMALL)
    assert run(*command).code == 0
    plan, write = stages(output)
    assert [plan["stage"], write["stage"]] == ["plan", "write"]
    assert set(plan) == set(StageTime.__annotations__)
    totals = json.loads((output / "manifest.json").read_text())["totals"]
    stored = totals["stored"]
    assert list(plan["worker_s"]) == ["list", "probe", "sample", "pack"]
    assert plan["counts"]["num_inputs"] == plan["counts"]["num_probed"] == totals["num_inputs"]
    assert plan["counts"]["num_sampled"] == plan["counts"]["num_planned"] == totals["planned"]["num_segments"]
    assert plan["counts"]["num_rejects"] == plan["counts"]["num_rejects_unknown_format"] == 1
    assert list(write["worker_s"]) == ["decode", "patchify", "write", "finish"]
    for count, total in (("shards", "num_shards"), ("sequences", "num_sequences"), ("examples", "num_segments")):
        assert write["counts"][f"num_{count}"] == stored[total]
    assert write["counts"]["num_tokens"] == stored["num_tokens"]
    assert write["counts"]["num_bytes"] == stored["bytes"]
    assert write["counts"]["num_token_bytes"] == stored["num_tokens"] * 16 * 16 * 3
    # a second run: it finds everything there
    (output / "manifest.json").unlink()
    assert run("build", "--output", output, "--resume", "--workers", 1).code == 0
    assert stages(output)[:2] == [plan, write]
    assert [stage["stage"] for stage in stages(output)[2:]] == ["write"]
    assert stages(output)[2]["counts"] == {
        "num_counted_shards": stored["num_shards"],
        "num_kept_examples": stored["num_segments"],
        "num_kept_shards": stored["num_shards"],
    }
    documented = (ROOT / "docs/format.md").read_text()
    for name in (*plan["counts"], *write["counts"], *WORK, "num_kept_shards", "num_kept_rejects"):
        assert f"`{re.sub('^num_rejects_.*', 'num_rejects_', name)}" in documented, name
    for key in StageTime.__annotations__:
        assert f"`{key}`" in documented, key


def test_a_stage_that_failed_has_its_time_and_a_killed_one_none(tmp_path: Path) -> None:
    (tmp_path / "_run.json").write_text("{}")
    with pytest.raises(ValueError, match="broken"), folder.stage_noted(str(tmp_path), "plan", 2) as found:
        found.update({"num_inputs": 5, "list_us": 1_500_000})
        raise ValueError("broken")
    (failed,) = stages(tmp_path)
    assert (failed["worker_s"], failed["counts"], failed["workers"]) == ({"list": 1.5}, {"num_inputs": 5}, 2)
    assert failed["wall_s"] is not None
    with folder.stage_noted(str(tmp_path), "write", None):
        # as the file is if nothing comes after
        before, running = stages(tmp_path)
    assert (before, running["stage"], running["wall_s"]) == (failed, "write", None)


def test_a_full_disk_loses_times_and_not_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_run.json").write_text("{}")

    def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="first"), folder.stage_noted(str(tmp_path), "write", 1):
        monkeypatch.setattr(folder.files, "write", full)
        raise ValueError("first")


@pytest.mark.slow
def test_distributions_are_those_of_the_dataset(
    media: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[PipelineResult] = []
    of_result = counts.of_result
    monkeypatch.setattr(counts, "of_result", lambda result: (results.append(result), of_result(result))[1])
    monkeypatch.setattr(finish, "page_of", lambda *_: "")
    built = run("build", media, "--output", tmp_path / "set", "--workers", 1, *SMALL)
    assert built.code == 0, built.err
    metrics = results[-1].metrics().query(MetricsFilter().with_namespace("patchpack"))
    found = {one.key.metric.name: one.result for one in metrics["distributions"]}
    shards = pq.read_table(tmp_path / "set/shards.parquet").to_pylist()
    tables = [pq.read_table(tmp_path / "set" / shard["path"], columns=["num_tokens"]) for shard in shards]
    values = {
        "sequence_tokens": [tokens for table in tables for tokens in table["num_tokens"].to_pylist()],
        "shard_bytes": [(tmp_path / "set" / shard["path"]).stat().st_size for shard in shards],
    }
    for name, expected in values.items():
        spread = found.pop(name)
        assert (spread.count, spread.sum) == (len(expected), sum(expected)), name
        assert (spread.min, spread.max) == (min(expected), max(expected)), name
    # times are of this run alone: those of decoding add up to its counter, each rounded by itself
    [write] = [one for one in json.loads((tmp_path / "set/_run.json").read_text())["stages"] if one["stage"] == "write"]
    decode, shard_times = found.pop("file_decode_us"), found.pop("shard_us")
    assert found == {} and 0 < decode.min <= decode.max <= decode.sum
    assert decode.sum == pytest.approx(write["worker_s"]["decode"] * 1e6, abs=1000 + decode.count)
    assert 0 < decode.count <= sum(shard["num_segments"] for shard in shards)
    assert shard_times.count == len(shards) and shard_times.sum >= decode.sum
