"""Growth: inputs that are added to a dataset, and a plan that is built elsewhere."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result, said
from support.media_files import photo, video, write_files

import patchpack
from patchpack.pipeline.execution import plan_transforms, shard_transforms
from patchpack.pipeline.stages import finish
from patchpack.pipeline.stages import probe as probe_stage
from patchpack.pipeline.storage.files import write as write_file
from patchpack.schemas import Layout, read_manifest, read_shard_table
from patchpack.schemas.manifest import Manifest

Run = Callable[..., Result]

OPTIONS = ("--sequence-length", 64, "--labels", "folder", "--group-size", 4, "--clip-frames", 2, "--workers", 1)
# what a dataset's readers see, but for the page, which says how long it took
SEEN = ("sequences/*", "manifest.json", "shards.parquet", "rejects.parquet", "bounds.parquet", "report.json")


def draw(folder: Path, number: int) -> bytes:
    """Writes an image of its own size and content, and returns it."""
    content = photo((40 + 3 * number, 64 + number))
    write_files(folder, {f"{'cat' if number % 2 else 'dog'}/{number:02}.jpg": content})
    return content


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the page, which takes longer to draw than all the rest."""
    monkeypatch.setattr(finish, "page_of", lambda *_: "")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Ten photos of two classes, and a file that is none."""
    for number in range(10):
        draw(tmp_path / "media", number)
    write_files(tmp_path / "media", {"cat/broken.jpg": b"\xff\xd8 nothing", "cat/notes.txt": b"a"})
    return tmp_path / "media"


def grow(media: Path) -> None:
    """Adds seven photos, a video, a new class that sorts before the others, and a broken file."""
    for number in range(10, 16):
        draw(media, number)
    new = {"ant/16.jpg": photo((50, 90)), "dog/clip.mp4": video(), "dog/empty.jpg": b""}
    write_files(media, new)


@pytest.fixture
def built(media: Path, tmp_path: Path, run: Run) -> Path:
    """A dataset of the ten."""
    assert run("build", media, "--output", tmp_path / "set", *OPTIONS).code == 0
    return tmp_path / "set"


def seen(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file that readers see."""
    return {str(path.relative_to(folder)): path.read_bytes() for name in SEEN for path in sorted(folder.glob(name))}


def keys(folder: Path) -> Counter[str]:
    """Returns how often each input is stored."""
    rows = (row for path in (folder / "sequences").iterdir() for row in pq.read_table(path)["segments"].to_pylist())
    return Counter(segment["source"] for row in rows for segment in row)


def labels(folder: Path) -> dict[str, str]:
    """Returns the class of each stored input, by its number in the manifest."""
    classes = read_manifest(str(folder)).classes or ()
    rows = (row for path in (folder / "sequences").iterdir() for row in pq.read_table(path)["segments"].to_pylist())
    return {segment["source"]: classes[segment["labels"][0]] for row in rows for segment in row}


def test_added_inputs_are_a_generation_and_no_byte_before_is_touched(
    media: Path, built: Path, tmp_path: Path, run: Run
) -> None:
    before, was = seen(built), read_manifest(str(built))
    times = {path: path.stat().st_mtime_ns for path in (built / "sequences").iterdir()}
    grow(media)
    ended = run("build", media, "--output", built, "--append", "--workers", 1)
    assert (ended.code, said(ended.err)) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    now = seen(built)
    assert {name: now[name] for name in before if name.startswith("sequences/")} == {
        name: content for name, content in before.items() if name.startswith("sequences/")
    }
    added = {name for name in now if name.startswith("sequences/")} - before.keys()
    assert added and all(name.startswith("sequences/part-001-") for name in added)
    # shards of before are the first rows, groups are numbered on
    names = read_shard_table(str(built))["path"].to_pylist()
    assert names == sorted(names)
    assert [name for name in names if name in before] == names[: len(before) - 5]
    groups = read_shard_table(str(built))["group"].to_pylist()
    assert min(groups[len(times) :]) > max(groups[: len(times)])

    manifest = read_manifest(str(built))
    assert manifest.dataset_digest != was.dataset_digest
    stored = was.totals["stored"]
    assert manifest.earlier == (
        {
            "dataset_digest": was.dataset_digest,
            "num_shards": stored["num_shards"],
            "num_sequences": stored["num_sequences"],
        },
    )
    assert manifest.classes == ("cat", "dog", "ant")
    assert all(label == key.split("/")[1] for key, label in labels(built).items())
    assert sorted(keys(built)) == sorted(f"media/{p.relative_to(media)}" for p in media.rglob("*.*") if is_good(p))
    assert set(keys(built).values()) == {1}
    rejects = {row["key"] for row in pq.read_table(built / "rejects.parquet").to_pylist()}
    assert rejects == {"media/cat/broken.jpg", "media/dog/empty.jpg"}
    assert manifest.totals["num_inputs"] == 20
    # what was there before is not ignored, it is packed; what is no media was met twice
    assert manifest.totals["ignored"] == {".txt": 2}
    plan = json.loads((built / "_plan/plan.json").read_text())
    assert plan["totals"]["ignored"] == {".txt": 1, "(packed before)": 10, "(rejected before)": 1}
    assert run("verify", built).code == 0
    # readers know nothing of generations
    assert len(patchpack.Dataset(str(built))) == stored_sequences(manifest)
    assert f"before {was.dataset_digest}" in run("report", built).out


def is_good(path: Path) -> bool:
    """Returns whether a file is stored."""
    return path.name not in ("broken.jpg", "empty.jpg", "notes.txt")


def stored_sequences(manifest: Manifest) -> int:
    """Returns how many sequences a dataset has."""
    return manifest.totals["stored"]["num_sequences"]


@pytest.mark.parametrize(
    "moment",
    ["planning", "writing", "finishing"],
)
@pytest.mark.slow
def test_a_run_that_dies_loses_no_byte_of_what_was_and_goes_on(
    moment: str, media: Path, built: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen(built)
    grow(media)
    shutil.copytree(built, tmp_path / "undisturbed")
    assert run("build", media, "--output", tmp_path / "undisturbed", "--append", "--workers", 1).code == 0

    def fail(*_: object, **__: object) -> None:
        raise OSError("the power fails")

    place = {
        "planning": (plan_transforms, "write_view_plan"),
        "writing": (shard_transforms, "save_result"),
        "finishing": (shard_transforms, "save_group"),
    }[moment]
    with monkeypatch.context() as broken:
        broken.setattr(*place, fail)
        assert run("build", media, "--output", built, "--append", "--workers", 1).code == 1
    # readers have the dataset that was
    assert {name: content for name, content in seen(built).items() if name in before} == before
    assert patchpack.Dataset(built).manifest.earlier == ()
    state = patchpack.status(built)["state"]
    # a shard that failed is said; a launcher that died says nothing
    assert state == ("failed" if moment == "writing" else "unfinished")
    if moment != "planning":
        again = run("build", media, "--output", built, "--append")
        assert again.code == 2 and "inputs are being added to it already" in again.err

    probed = []
    monkeypatch.setattr(plan_transforms, "probe", lambda *given: probed.append(given) or probe_stage.probe(*given))
    ended = run("build", "--output", built, "--resume", "--workers", 1)
    assert (ended.code, said(ended.err)) == (0, "")
    assert probed == []
    assert seen(built) == seen(tmp_path / "undisturbed")
    assert patchpack.status(built)["state"] == "finished"
    assert not (built / "_plan-next").exists()


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.slow_beyond(1)
def test_a_finished_dataset_that_is_written_again_is_unfinished_meanwhile(
    grown: bool, media: Path, built: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if grown:
        grow(media)
        assert run("build", media, "--output", built, "--append", "--workers", 1).code == 0
    before = seen(built)
    max((built / "sequences").iterdir()).unlink()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the power fails")

    with monkeypatch.context() as broken:
        broken.setattr(shard_transforms, "write_shard", fail)
        assert run("build", "--output", built, "--resume", "--workers", 1).code == 1
    assert not (built / "manifest.json").exists()
    assert run("build", "--output", built, "--resume", "--workers", 1).code == 0
    assert seen(built) == before


@pytest.mark.slow
def test_it_grows_again_and_workers_change_no_byte(media: Path, built: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(built, tmp_path / "other")
    digests = [read_manifest(str(built)).dataset_digest]
    grow(media)
    for step in range(2):
        assert run("build", "--output", built, "--append", "--workers", 1).code == 0
        assert run("build", media, "--output", tmp_path / "other", "--append", "--workers", 2).code == 0
        digests.append(read_manifest(str(built)).dataset_digest)
        draw(media, 30 + step)
    assert seen(built) == seen(tmp_path / "other")
    assert [one["dataset_digest"] for one in read_manifest(str(built)).earlier] == digests[:-1]
    assert run("verify", built).code == 0


def test_nothing_new_changes_nothing(media: Path, built: Path, run: Run) -> None:
    before = seen(built)
    ended = run("build", media, "--output", built, "--append", "--workers", 1)
    assert ended.code == 0
    assert said(ended.err) == f"{built}: nothing to add; all 11 inputs were packed or rejected before\n"
    assert seen(built) == before
    assert not (built / "_plan-next").exists()


@pytest.mark.slow
def test_nothing_is_added_of_what_is_mostly_broken_unless_it_is_accepted(media: Path, built: Path, run: Run) -> None:
    before = seen(built)
    draw(media, 20)
    write_files(media, {f"dog/broken-{number:03}.jpg": b"\xff\xd8 nothing" for number in range(100)})
    ended = run("build", media, "--output", built, "--append", "--workers", 1)
    assert ended.code == 1
    assert (
        "100 of 101 new inputs rejected (first: media/dog/broken-000.jpg: unknown_format); --max-reject-fraction is"
        in ended.err
    )
    assert seen(built) == before
    assert patchpack.status(built)["state"] == "unfinished"
    ended = run("build", "--output", built, "--resume", "--max-reject-fraction", 1, "--workers", 1)
    assert (ended.code, said(ended.err)) == (0, "")
    assert keys(built)["media/dog/20.jpg"] == 1 and run("verify", built).code == 0


@pytest.mark.slow
def test_what_changed_since_stays_as_it_is_packed_and_is_said(media: Path, built: Path, run: Run) -> None:
    (media / "dog/00.jpg").write_bytes(photo((200, 100)))
    draw(media, 20)
    ended = run("build", media, "--output", built, "--append", "--workers", 1)
    assert ended.code == 0
    assert "1 inputs have another size than when they were packed" in ended.err
    plan = json.loads((built / "_plan/plan.json").read_text())
    assert plan["totals"]["ignored"]["(packed before, and of another size now)"] == 1
    assert keys(built)["media/dog/00.jpg"] == 1


@pytest.mark.slow
def test_copies_of_what_is_packed_are_found(media: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "set"
    assert run("build", media, "--output", output, *OPTIONS, "--dedupe", "digest").code == 0
    # of a name that sorts before that of the original, and a new one that comes twice
    write_files(media, {"ant/00.jpg": (media / "dog/00.jpg").read_bytes(), "ant/1.jpg": photo((70, 30))})
    write_files(media, {"ant/2.jpg": photo((70, 30))})
    assert run("build", media, "--output", output, "--append", "--workers", 1).code == 0
    rejects = {row["key"]: row["detail"] for row in pq.read_table(output / "rejects.parquet").to_pylist()}
    assert rejects["media/ant/00.jpg"] == "the same bytes as media/dog/00.jpg"
    assert rejects["media/ant/2.jpg"] == "the same bytes as media/ant/1.jpg"
    assert keys(output)["media/dog/00.jpg"] == keys(output)["media/ant/1.jpg"] == 1
    # and in a third generation, of one that came in the second
    write_files(media, {"ant/0.jpg": photo((70, 30)), "ant/9.jpg": photo((70, 31))})
    assert run("build", media, "--output", output, "--append", "--workers", 1).code == 0
    rejects = {row["key"]: row["detail"] for row in pq.read_table(output / "rejects.parquet").to_pylist()}
    assert rejects["media/ant/0.jpg"] == "the same bytes as media/ant/1.jpg"


@pytest.mark.slow
def test_what_cannot_be_added_to_is_refused_and_stays(media: Path, built: Path, tmp_path: Path, run: Run) -> None:
    before = seen(built)
    (tmp_path / "empty").mkdir()
    for expected, *arguments in (
        ("no dataset; a dataset is a folder with manifest.json", media, "--output", tmp_path / "empty", "--append"),
        ("no dataset; a dataset is a folder with manifest.json", "--output", tmp_path / "empty", "--append"),
        ("--sequence-length: 128 now, 64 when", media, "--output", built, "--append", "--sequence-length", 128),
        ("--append --resume: inputs are added to a finished dataset", "--output", built, "--append", "--resume"),
        ("--append --overwrite: inputs are added", media, "--output", built, "--append", "--overwrite"),
        ("no media found", tmp_path / "empty", "--output", built, "--append"),
    ):
        ended = run("build", *arguments, "--workers", 1)
        assert ended.code in (1, 2) and expected in ended.err, ended.err
        assert len(said(ended.err).splitlines()) == 1
    with patchpack.ShardWriter(str(tmp_path / "arrays"), Layout(64, 8, (1, 16, 16))) as writer:
        writer.add(np.zeros((4, 768), np.uint8), (1, 2, 2), key="a")
    ended = run("build", media, "--output", tmp_path / "arrays", "--append")
    assert ended.code == 2 and "no _plan/plan.json; --append looks there" in ended.err
    assert seen(built) == before
    sample = tmp_path / "sample"
    assert run("build", media, "--output", sample, *OPTIONS, "--limit", 5).code == 0
    ended = run("build", media, "--output", sample, "--append")
    assert ended.code == 2 and "--append: this dataset is a sample, with --limit 5" in ended.err


def test_a_wrong_record_of_what_was_is_a_problem(media: Path, built: Path, run: Run) -> None:
    grow(media)
    assert run("build", media, "--output", built, "--append", "--workers", 1).code == 0
    manifest = read_manifest(str(built))
    (one,) = manifest.earlier
    other = Manifest(**{**vars(manifest), "earlier": ({**one, "num_shards": one["num_shards"] + 1},)})
    write_file(str(built / "manifest.json"), other.to_bytes())
    assert "shards that inputs are added to stay as they are" in run("verify", built).err


@pytest.mark.slow
def test_a_plan_is_built_elsewhere(media: Path, tmp_path: Path, run: Run) -> None:
    assert run("build", media, "--output", tmp_path / "whole", *OPTIONS).code == 0
    assert run("plan", media, "--output", tmp_path / "planned", *OPTIONS).code == 0
    # another machine, where the same files lie elsewhere
    elsewhere = tmp_path / "mnt/media"
    shutil.copytree(media, elsewhere)
    shutil.rmtree(media)
    output = tmp_path / "set"
    ended = run("build", elsewhere, "--output", output, "--from-plan", tmp_path / "planned", "--workers", 1)
    assert (ended.code, said(ended.err)) == (0, "")
    assert seen(output) == seen(tmp_path / "whole")
    assert json.loads((output / "_run.json").read_text())["roots"] == [str(elsewhere)]
    # it goes on, and grows, as any other
    assert run("build", "--output", output, "--resume", "--workers", 1).code == 0
    draw(elsewhere, 20)
    assert run("build", "--output", output, "--append", "--workers", 1).code == 0
    # beside what is there
    other = tmp_path / "other"
    assert run("build", elsewhere, "--output", other, *OPTIONS, "--max-segments", 3).code == 0
    arguments = ("--from-plan", tmp_path / "planned", "--overwrite", "--workers", 1)
    assert run("build", elsewhere, "--output", other, *arguments).code == 0
    assert seen(other) == seen(tmp_path / "whole")
    for expected, *rest in (
        ("no _plan/plan.json in it", elsewhere, "--from-plan", tmp_path / "nothing"),
        (
            "made of media, given cat; inputs are those of the plan",
            elsewhere / "cat",
            "--from-plan",
            tmp_path / "planned",
        ),
        ("a dataset that has grown 1 times", elsewhere, "--from-plan", output),
        ("--sequence-length: 128 now", elsewhere, "--from-plan", tmp_path / "planned", "--sequence-length", 128),
    ):
        ended = run("build", *rest, "--output", tmp_path / "no", "--workers", 1)
        assert ended.code == 2 and expected in ended.err, ended.err
        assert not (tmp_path / "no").exists()
