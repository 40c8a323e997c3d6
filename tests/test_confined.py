"""Names in files that someone hands over: nothing outside the output is written or deleted, and one line says so."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result
from support.inputs import OPTIONS, picture, rejects, segments, write_csv
from support.manifests import change_manifest

import patchpack
from patchpack.pipeline.execution.folder import copy_plan
from patchpack.pipeline.stages.saved import SUMMARY_KEY
from patchpack.pipeline.stages.summary import Listing, ViewSummary
from patchpack.schemas import FormatError, read_manifest, read_shard_table
from patchpack.schemas.cache import FOLDER_NAME, ShardCache
from patchpack.schemas.manifest import SHARD_TABLE_SCHEMA, dataset_digest, table_bytes
from patchpack.trainer.runlog import LOG_NAME, RunLog, fresh

Run = Callable[..., Result]

# of the victim, as a dataset beside it would name it
OUTSIDE = ("../victim/a.parquet", "sequences/../../victim/a.parquet", "{victim}/a.parquet", "file://{victim}/a.parquet")
OTHERS = (
    "",
    ".",
    "sequences",
    "sequences/",
    "sequences/..",
    "sequences/.a.parquet",
    "mine.txt",
    "sequences/a/b.parquet",
    "a\\b",
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of someone's, beside whatever is built."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("a.parquet", ".b.tmp", "plan.json"):
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def media(of_three: Path) -> Path:
    return of_three.parent / "media"


@pytest.fixture
def dataset(of_three: Path, tmp_path: Path) -> Path:
    """A copy of it, and a file of its owner's in that."""
    copy = Path(shutil.copytree(of_three, tmp_path / "set"))
    (copy / "mine.txt").write_text("precious")
    return copy


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def with_path(folder: Path, name: str, **values: Any) -> None:
    """Makes the first shard of a dataset's table another file, in a dataset that is else sound."""
    rows = read_shard_table(str(folder)).to_pylist()
    rows[0] |= {"path": name, **values}
    (folder / "shards.parquet").write_bytes(table_bytes(rows, SHARD_TABLE_SCHEMA))
    digest = dataset_digest(read_manifest(str(folder)).layouts, [row["digest"] for row in rows])
    change_manifest(folder, dataset_digest=digest)


@pytest.mark.parametrize("name", [*OUTSIDE, *OTHERS, "sequences/a.parquet\n"])
def test_a_shard_table_names_files_of_its_own_folder_only(name: str, dataset: Path, victim: Path, run: Run) -> None:
    name = name.format(victim=victim)
    with_path(dataset, name)
    commands = [
        ("report", dataset, "--html", dataset / "x.html"),
        ("report", dataset, "--figures", dataset / "figures"),
        ("inspect", dataset, 0, "--image", dataset / "x.png"),
        ("inspect", dataset, "--example", "media/0.png"),
        ("verify", dataset),
        ("diff", dataset, dataset),
    ]
    for command in commands:
        ended = run(*command)
        assert ended.code and ended.err.count("\n") == 1, ended
        assert ended.err.startswith(f"{dataset}/shards.parquet: path {name!r}; a shard is a file in sequences/"), (
            ended.err
        )
    with pytest.raises(FormatError, match="a shard is a file in sequences/"):
        patchpack.Dataset(str(dataset))
    assert not (dataset / "x.html").exists() and not (dataset / "x.png").exists() and not (dataset / "figures").exists()


@pytest.mark.parametrize("name", [*OUTSIDE, "mine.txt"])
@pytest.mark.slow_beyond(1)
def test_overwrite_deletes_nothing_that_a_shard_table_names_elsewhere(
    name: str, dataset: Path, victim: Path, media: Path, run: Run
) -> None:
    with_path(dataset, name.format(victim=victim))
    before = contents(victim)
    assert run("build", media, "--output", dataset, "--overwrite", *OPTIONS).code == 0
    assert contents(victim) == before and (dataset / "mine.txt").read_text() == "precious"
    assert patchpack.verify(str(dataset)) == []


def change_plan(folder: Path, **values: object) -> None:
    """Changes the first shard of the summary in a saved plan."""
    path = min(folder.glob("_plan/part-*.parquet"))
    summary = ViewSummary.from_json(pq.read_metadata(path).metadata[SUMMARY_KEY])
    shard = {name: getattr(summary.shards[0], name) for name in summary.shards[0].__slots__} | values
    raw = summary.to_json().replace(b'"shards":[', b'"shards":[' + json.dumps(shard).encode() + b",")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({SUMMARY_KEY: raw}), path)


@pytest.mark.parametrize("column", ["rejects_in", "digests_in"])
@pytest.mark.parametrize("bucket", ["/../../outside", -1, True])
def test_a_plan_of_others_copies_nothing_out_of_the_output(column: str, bucket: object, tmp_path: Path) -> None:
    folder, output = tmp_path / "theirs", tmp_path / "mine/out"
    for path in (folder / "_plan", output):
        path.mkdir(parents=True)
    # a folder of the name that comes before the slash, so that the path leads somewhere
    (folder / "_plan/rejects-000-").mkdir()
    listing = json.loads(Listing().to_json()) | {column: [bucket]}
    (folder / "_plan/listing-000.json").write_text(json.dumps(listing))
    (folder / "_plan/plan.json").write_text(json.dumps({"config": {}, "inputs": [], "totals": {}, "earlier": []}))
    (folder / "_plan/parts-000.json").write_text("[]")
    (folder / "_plan/arranged-000.json").write_text("{}")
    with pytest.raises(FormatError, match=f"{column} is "):
        copy_plan(str(folder), str(output))
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "theirs"}


@pytest.mark.parametrize(
    "values", [{"group": "../../victim/"}, {"index": "/../../victim/a"}, {"group": -1}, {"view": 0.5}]
)
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
@pytest.mark.slow_beyond(2)
def test_a_plan_names_shards_by_numbers_only(
    values: dict[str, object], option: str, dataset: Path, victim: Path, media: Path, run: Run
) -> None:
    change_plan(dataset, **values)
    (dataset / "shards.parquet").unlink()
    before = contents(victim)
    ended = run("build", media, "--output", dataset, option, *OPTIONS)
    assert ended.code == 1 and "broken plan" in ended.err and ended.err.count("\n") == 1, ended
    assert contents(victim) == before


@pytest.mark.parametrize("name", ["sequences", "_plan", "_plan-next", "_plan-next/_plan"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_link_in_an_output_is_refused(
    name: str, option: str, dataset: Path, victim: Path, media: Path, run: Run
) -> None:
    path = dataset / name
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(victim)
    before = contents(victim)
    ended = run("build", media, "--output", dataset, option, *OPTIONS)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"{path}: a link to {victim}; a build writes and deletes in its output only; ")
    assert contents(victim) == before


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet", "report.html", "_run.json", "_plan/plan.json"])
@pytest.mark.slow_beyond(1)
def test_a_linked_file_of_an_output_is_replaced_and_not_written_through(
    name: str, dataset: Path, victim: Path, media: Path, run: Run
) -> None:
    shutil.copy(dataset / name, victim / "copy")
    (dataset / name).unlink()
    (dataset / name).symlink_to(victim / "copy")
    before = (victim / "copy").read_bytes()
    assert run("build", media, "--output", dataset, "--overwrite", *OPTIONS).code == 0
    assert (victim / "copy").read_bytes() == before and not (dataset / name).is_symlink()


def test_members_of_a_tar_are_never_unpacked(tmp_path: Path, victim: Path, run: Run) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("../victim/up.png", f"{victim}/abs.png", "ok.png", "link.png/through.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            archive.addfile(info, io.BytesIO(picture(1)))
        for name, kind, target in (
            ("link.png", tarfile.SYMTYPE, str(victim)),
            ("hard.png", tarfile.LNKTYPE, str(victim / "a.parquet")),
            ("device.png", tarfile.CHRTYPE, ""),
            ("block.png", tarfile.BLKTYPE, ""),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    before, beside = contents(victim), set(os.listdir(tmp_path))
    assert run("build", tmp_path / "t.tar", "--output", tmp_path / "out", *OPTIONS).code == 0
    assert sorted(segments(tmp_path / "out")) == ["link.png/through.png", "ok.png"]
    assert {(stage, reason) for _, stage, reason in rejects(tmp_path / "out")} == {("list", "outside")}
    assert contents(victim) == before and set(os.listdir(tmp_path)) == {*beside, "out"}


def test_rows_of_a_table_name_files_below_their_root_only(tmp_path: Path, victim: Path, run: Run) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/ok.png").write_bytes(picture(1))
    (victim / "secret.png").write_bytes(picture(2))
    named = [
        "ok.png",
        "../victim/secret.png",
        str(victim / "secret.png"),
        f"file://{victim}/secret.png",
        "https://host/a.png",
    ]
    write_csv(tmp_path / "in/t.csv", [{"path": name} for name in named])
    assert run("build", tmp_path / "in/t.csv", "--output", tmp_path / "out", *OPTIONS).code == 0
    assert list(segments(tmp_path / "out")) == ["ok.png"]
    assert [reason for _, _, reason in rejects(tmp_path / "out")] == ["outside"] * 4


def test_links_in_a_run_or_a_cache_are_not_written_through(tmp_path: Path, victim: Path) -> None:
    before = contents(victim)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in (f"{LOG_NAME}.tmp", LOG_NAME, "curves.png"):
        (run_folder / name).symlink_to(victim / "plan.json")
    (run_folder / LOG_NAME).unlink()
    log = RunLog(str(run_folder), tensorboard=False, step=0)
    log.add({"step": 1})
    log.close()
    Path(fresh(str(run_folder / "curves.png"))).write_text("drawn")
    (run_folder / "tensorboard").symlink_to(victim)
    with pytest.raises(ValueError, match="tensorboard: a link; a run writes below its own folder only"):
        RunLog(str(run_folder), tensorboard=True, step=0)
    cache = ShardCache(str(tmp_path / "cache"), 10**6)
    (tmp_path / "cache" / FOLDER_NAME / "ab").symlink_to(victim)
    with pytest.raises(ValueError, match="a symbolic link; the cache writes and deletes in a folder of its own"):
        cache.fetch("s3://nowhere/a.parquet", "ab" * 16, 8)
    assert contents(victim) == before


@pytest.mark.parametrize("column", ["num_sequences", "layout", "group", "bytes"])
def test_a_shard_table_counts_from_zero(column: str, dataset: Path, run: Run) -> None:
    with_path(dataset, "sequences/part-000-00000-00000.parquet", **{column: -1})
    ended = run("verify", dataset)
    assert ended.code == 1 and f"shards.parquet: {column} is -1; counts are 0 or more" in ended.err
    with pytest.raises(FormatError, match="counts are 0 or more"):
        patchpack.Dataset(str(dataset))


def test_a_shard_table_without_a_value_is_broken(dataset: Path) -> None:
    table = read_shard_table(str(dataset))
    missing = pa.array([None] * len(table), pa.string())
    fields = [field.with_nullable(True) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)).set_column(1, "digest", missing), dataset / "shards.parquet")
    with pytest.raises(FormatError, match=r"shards\.parquet"):
        patchpack.Dataset(str(dataset))


def test_the_threat_model_names_what_is_there() -> None:
    root = Path(__file__).parent.parent
    text = (root / "docs/security.md").read_text()
    named = set(re.findall(r"`((?:tests|fuzz|schemas|pipeline|trainer)/[\w/]+(?:\.\w+)?/?)`", text))
    assert len(named) > 20 and not [name for name in named - {"fuzz/found/"} if not (root / name).exists()]
