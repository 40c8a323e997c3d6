"""Reading runs no code: which sources use what could, by name; and a pickle that does harm in every file that someone hands over."""

import ast
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Result
from support.inputs import OPTIONS, picture, write_csv, write_tar
from support.other_libraries import need_other_libraries

import patchpack
from patchpack.trainer import checkpoint
from patchpack.trainer.cli import main as train

Run = Callable[..., Result]

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for room in ("patchpack", "schemas", "pipeline", "trainer") for path in sorted((ROOT / room).rglob("*.py"))
]

# modules whose reading runs what it reads
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "yaml",
    "code",
    "runpy",
    "imp",
}
# functions of any module: of pandas and numpy, and torch's that pickle objects between processes
FUNCTIONS = {
    "read_pickle",
    "fromfunction",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}

ALLOWED = {
    # calls go to the sandbox by a pipe of its parent, and never come back so
    ("pipeline/execution/sandbox.py", "import pickle"),
    ("pipeline/execution/sandbox.py", "pickle.dumps"),
    ("pipeline/execution/sandbox.py", "pickle.loads"),
    # torch's index, read by an unpickler that knows the classes of an index of tensors and nothing else
    ("trainer/checkpoint.py", "import pickle"),
    ("trainer/checkpoint.py", "pickle.Unpickler"),
    ("trainer/checkpoint.py", "pickle.UnpicklingError"),
    # a random name, from the first process of a run to the others
    ("trainer/checkpoint.py", "broadcast_object_list"),
}


def uses(path: Path) -> Iterator[str]:
    """Yields what a source has that could run what it reads."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner in MODULES:
                yield f"{owner}.{node.attr}"
            if node.attr in FUNCTIONS:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            yield node.func.id
        if isinstance(node, ast.Call):
            yield from _loads(node)


def _loads(call: ast.Call) -> Iterator[str]:
    """Yields calls of numpy and torch that unpickle, or may."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield name
    if name.endswith(".from_pretrained") and "Config" not in name and given.get("use_safetensors") != "True":
        yield name


def test_sources_that_could_run_what_they_read_are_named_here() -> None:
    found = {(str(path.relative_to(ROOT)), use) for path in SOURCES for use in uses(path)}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import dill", "from pickle import loads", "import torch\ntorch.load(path)", "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)", "eval(text)", "AutoModel.from_pretrained(name)", "torch.load(path, weights_only=False)",
        "dist.all_gather_object(found, mine)", "AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_could_run_is_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(source)
    assert list(uses(tmp_path / "a.py"))


class Harmful:
    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.place,)


@pytest.fixture
def harm(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that makes a folder, which nobody has made at the end."""
    yield pickle.dumps(Harmful(str(tmp_path / "harmed")))
    assert not (tmp_path / "harmed").exists()
    pickle.loads(pickle.dumps(Harmful(str(tmp_path / "harmed"))))
    assert (tmp_path / "harmed").exists()


NAMES = (
    "manifest.json",
    "shards.parquet",
    "rejects.parquet",
    "bounds.parquet",
    "report.json",
    "_run.json",
    "_plan/plan.json",
)
PARTS = ("_plan/listing-000.json", "_plan/part-000-00000-000.parquet", "sequences/part-000-00000-00000.parquet")


@pytest.mark.parametrize("name", [*NAMES, *PARTS])
@pytest.mark.slow_beyond(3)
def test_a_pickle_in_a_file_of_a_dataset_is_never_run(
    name: str, of_three: Path, harm: bytes, tmp_path: Path, run: Run
) -> None:
    own = Path(shutil.copytree(of_three, tmp_path / "set"))
    assert (own / name).exists()
    (own / name).write_bytes(harm)
    if name in ("manifest.json", "shards.parquet"):
        with pytest.raises(patchpack.FormatError):
            patchpack.Dataset(str(own))
    train([str(own), "--steps", "0"])
    for command in (
        ("report", own),
        ("verify", own),
        ("inspect", own, 0),
        ("diff", own, of_three),
        ("plan", "--from", own, "--compare", "--seed 1"),
        ("build", of_three.parent / "media", "--output", own, "--resume", *OPTIONS),
    ):
        run(*command)


@pytest.mark.slow
def test_a_pickle_as_an_input_is_never_run(harm: bytes, tmp_path: Path, run: Run) -> None:
    for suffix in ("png", "jpg", "gif", "mp4", "npy", "csv", "jsonl", "parquet", "tar"):
        (tmp_path / f"a.{suffix}").write_bytes(harm)
    write_tar(tmp_path / "t.tar", {"a.png": harm, "a.json": harm, "b.png": picture(1), "b.pyd": harm, "c.pickle": harm})
    write_csv(tmp_path / "t.csv", [{"path": "a.png", "label": harm.hex()}])
    for number, named in enumerate(["a.png", "a.mp4", "a.csv", "a.jsonl", "a.parquet", "a.tar", "t.tar", "t.csv", ""]):
        run("build", tmp_path / named, "--output", tmp_path / f"out-{number}", *OPTIONS)
    for option in ("--labels", "--classes", "--recipe"):
        run("build", tmp_path / "t.tar", "--output", tmp_path / f"out{option}", *OPTIONS, option, tmp_path / "a.csv")
    run("build", tmp_path / "t.tar", "--output", tmp_path / "text", *OPTIONS, "--captions", f"hf:{tmp_path}/a.npy")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["run.json", ".metadata", "model.safetensors", "__0_0.distcp"])
def test_a_pickle_in_a_checkpoint_is_never_run(name: str, of_three: Path, harm: bytes, tmp_path: Path) -> None:
    options = ["--steps", "1", "--dim", "32", "--depth", "1", "--heads", "2", "--batch-size", "1"]
    assert train([str(of_three), *options, "--checkpoint", str(tmp_path / "run")]) == 0
    path = Path(checkpoint.find(str(tmp_path / "run")))
    assert (path / name).exists()
    (path / name).write_bytes(harm)
    code = train([str(of_three), "--resume", str(tmp_path / "run"), "--steps", "2"])
    # the weights alone are for other programs
    assert code == (0 if name == "model.safetensors" else 1)


def test_a_pickle_as_a_model_of_the_hub_is_never_run(harm: bytes, tmp_path: Path) -> None:
    need_other_libraries()
    from transformers import Siglip2VisionConfig

    from patchpack.schemas.manifest import largest_limits
    from patchpack.trainer.adapters.hub import of_hub

    own = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Siglip2VisionConfig(**own).save_pretrained(tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(harm)
    layout = patchpack.Layout(16, 4, (1, 16, 16), channels=3)
    with pytest.raises(ValueError, match="hf:") as caught:
        of_hub(str(tmp_path / "model"), True, layout, largest_limits(()), 2, "dense")
    assert "\n" not in str(caught.value)
