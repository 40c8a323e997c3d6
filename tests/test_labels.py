"""Labels: where there are none, somebody is reported; and a split gets the numbers of the dataset it belongs to."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image

from patchpack.pipeline.stages.labels import check_labels, label_gaps, label_of, read_class_names, with_folder_label
from patchpack.pipeline.stages.records import Source
from patchpack.pipeline.stages.summary import LabelGaps

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--sequence-length", 64, "--resolution", "side:32-64")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A training split of three classes, and a split without the first of them."""
    for split, names in (("train", ("cat", "dog", "yak")), ("val", ("dog", "yak"))):
        for number, name in enumerate(names):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (50, 60), (0, 99, 80 * number)).save(folder / f"{name}{number}.png")
    return tmp_path


def labels_of(output: Path) -> dict[str, list[int]]:
    """Returns the stored labels by file name."""
    return {
        segment["source"].rpartition("/")[2]: segment["labels"]
        for path in output.glob("sequences/part-*.parquet")
        for segments in pq.read_table(path, columns=["segments"])["segments"].to_pylist()
        for segment in segments
    }


def test_a_label_is_the_name_of_the_folder_a_key_lies_in() -> None:
    assert label_of("photos/cats/a.jpg") == "cats"
    assert label_of("cats/a.jpg") == "cats"
    assert label_of("a.jpg") is None


@pytest.mark.slow
def test_labels_of_files_in_no_folder_are_an_error_if_all_and_a_warning_if_some_are(
    animals: Path, tmp_path: Path, run: Run
) -> None:
    dog, cat = animals / "train/dog/dog1.png", animals / "train/cat/cat0.png"
    rule = (
        "a file named by itself, or by a glob that the shell has spelled out, has no folder in its key; name the folder, or "
        "put the glob in quotes"
    )
    for command in ("plan", "build"):
        ended = run(command, dog, cat, "--output", tmp_path / "out", "--labels", "folder", *OPTIONS)
        told = f"--labels folder: none of 2 inputs lies in a folder (first: cat0.png); {rule}\n"
        assert (ended.code, ended.err, ended.out) == (2, told, "")
        assert not (tmp_path / "out").exists()
    ended = run("build", dog, animals / "val", "--output", tmp_path / "out", "--labels", "folder", *OPTIONS)
    told = f"warning: --labels folder: 1 of 3 inputs lie in no folder and have no label (first: dog1.png); {rule}\n"
    assert (ended.code, ended.err) == (0, told)
    assert labels_of(tmp_path / "out") == {"dog1.png": [], "dog0.png": [0], "yak1.png": [1]}


@pytest.mark.slow
def test_a_split_gets_the_class_numbers_of_its_training_set(animals: Path, tmp_path: Path, run: Run) -> None:
    for split, more in (("train", ()), ("val", ("--classes", tmp_path / "out-train"))):
        ended = run(
            "build", animals / split, "--output", tmp_path / f"out-{split}", "--labels", "folder", *OPTIONS, *more
        )
        assert (ended.code, ended.err) == (0, "")
    manifest = json.loads((tmp_path / "out-val/manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog", "yak"]
    assert "classes" not in manifest["config"]
    assert labels_of(tmp_path / "out-val") == {"dog0.png": [1], "yak1.png": [2]}
    # and a build that goes on keeps them, whatever became of that dataset
    resumed = run("build", "--output", tmp_path / "out-val", "--resume", "--workers", 1)
    assert (resumed.code, resumed.err) == (0, "")
    assert json.loads((tmp_path / "out-val/manifest.json").read_text()) == manifest
    (tmp_path / "two.txt").write_text("yak\ndog\n")
    other = run(
        "build", "--output", tmp_path / "out-val", "--resume", "--workers", 1, "--classes", tmp_path / "two.txt"
    )
    assert other.code == 2
    assert other.err.startswith("--classes: 2 names now, others than the 3 in the saved plan of ")


def test_a_file_of_names_fixes_their_order(animals: Path, tmp_path: Path, run: Run) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\ufeffyak\r\n\r\n dog \r\nzebu\n")
    command = (
        "build",
        animals / "val",
        "--output",
        tmp_path / "out",
        *OPTIONS,
        "--labels",
        "folder",
        "--classes",
        names,
    )
    ended = run(*command)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["classes"] == ["yak", "dog", "zebu"]
    assert labels_of(tmp_path / "out") == {"dog0.png": [1], "yak1.png": [0]}


@pytest.mark.slow
def test_a_folder_that_is_no_class_is_an_error(animals: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "classes.txt").write_text("dog\n")
    options = (*OPTIONS, "--labels", "folder", "--classes", tmp_path / "classes.txt")
    ended = run("build", animals / "train", "--output", tmp_path / "out", *options)
    assert (ended.code, ended.err) == (
        2,
        "--classes: 2 inputs lie in folders that are none of them (cat, yak); every folder is a class; add the names, or leave "
        "those inputs out with --exclude\n",
    )
    assert not (tmp_path / "out").exists()
    left_out = ("--exclude", "*/cat/*", "--exclude", "*/yak/*")
    assert run("build", animals / "train", "--output", tmp_path / "out", *options, *left_out).code == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a\nb\na\n", "a stands there twice; a class has one number"),
        (b"\n \n", "it has no class; name a dataset that was built with labels, or a file of one name a line"),
        (b"\xff\xfe", "it is no text in UTF-8; it holds one name a line"),
        (None, "it is a file of one name a line, or a dataset: No such file or directory"),
    ],
)
def test_a_list_of_classes_that_is_none_says_why(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_class_names(str(path))
    assert str(refused.value) == told


@pytest.mark.slow
def test_a_set_without_classes_gives_no_names(packed: Path, tmp_path: Path, animals: Path, run: Run) -> None:
    assert read_class_names(str(packed)) == ("left", "right")
    assert run("build", animals / "val", "--output", tmp_path / "bare", *OPTIONS).code == 0
    with pytest.raises(ValueError, match="^it has no class; name a dataset"):
        read_class_names(str(tmp_path / "bare"))


def test_gaps_count_inputs_and_not_their_clips_or_views() -> None:
    keys = ["b.png", "b.png", "x/cat/a.mp4", "x/cat/a.mp4", "x/yak/c.png", "a.png"]
    labels = {key: with_folder_label(Source(key, 0, key, 1)).facts.labels for key in keys}
    gaps = label_gaps(labels, ("cat",))
    assert gaps == LabelGaps(4, 2, "a.png", {"yak": 1})
    assert label_gaps(labels, None) == LabelGaps(4, 2, "a.png", {})
    other = LabelGaps(3, 1, "A.png", {"yak": 1, "ox": 2})
    assert (
        LabelGaps.merged([gaps, other])
        == LabelGaps.merged([other, gaps])
        == LabelGaps(7, 3, "A.png", {"ox": 2, "yak": 2})
    )
    with pytest.raises(ValueError, match=r"^--classes: 2 inputs lie in folders that are none of them \(yak\)"):
        check_labels(LabelGaps.merged([gaps, gaps]), "--labels folder")
    assert check_labels(label_gaps({"x/cat/a.mp4": ("cat",)}, ("cat",)), "--labels folder") == ""
