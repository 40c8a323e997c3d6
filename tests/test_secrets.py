"""Passwords, tokens and signatures of URIs are in no file, no line and no JSON that is written."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from apache_beam.utils import retry
from conftest import Result
from support.inputs import picture
from test_files import MemoryFileSystem
from test_trainer_checkpoint import ALONE, made, record

import patchpack
from patchpack.pipeline.execution import shard_transforms
from patchpack.schemas import FormatError
from patchpack.schemas.errors import is_redacted, without_secrets
from patchpack.trainer import checkpoint, cli
from patchpack.trainer.cli import main as train
from patchpack.trainer.config import resumed
from patchpack.trainer.runlog import RunLog

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--sequence-length", 256, "--resolution", "side:32-96", "--media-backend", "pillow")
# a user and password, and a signature: neither may be anywhere
SECRET = "S3CRET"
STORE = f"mem://me:{SECRET}@bucket/raw"
REDACTED = {
    "https://user:pass@host/a.png": "https://***@host/a.png",
    "https://user:p@ss@host/a@b": "https://***@host/a@b",
    "https://ghp_token@host/a": "https://***@host/a",
    "s3://KEY:SECRET@bucket/raw/**": "s3://***@bucket/raw/**",
    "s3://KEY:SEC/RET+x=@bucket/raw": "s3://***@bucket/raw",
    "hdfs://me:secret@host:8020/a": "hdfs://***@host:8020/a",
    "https://h/a.png?X-Amz-Algorithm=A&X-Amz-Credential=AKIA%2F1&X-Amz-Signature=ab12&x=1":
        "https://h/a.png?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***&x=1",
    "gs://b/a?X-Goog-Signature=ab12&x=1": "gs://b/a?X-Goog-Signature=***&x=1",
    "https://acc.blob.core.windows.net/c/a?sv=2024&sig=ab%2F12&se=2": "https://acc.blob.core.windows.net/c/a?sv=2024&sig=***&se=2",
    "https://h/a?token=abc#part": "https://h/a?token=***#part",
    "https://h/a?x=1&amp;access_token=abc": "https://h/a?x=1&amp;access_token=***",
    "s3://b/a?access_key=AK&secret_key=SK&region=eu": "s3://b/a?access_key=***&secret_key=***&region=eu",
    "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=abc/+==;EndpointSuffix=core.windows.net":
        "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=***;EndpointSuffix=core.windows.net",
    "BlobEndpoint=https://me.blob.core.windows.net;SharedAccessSignature=sv=1&sig=ab":
        "BlobEndpoint=https://me.blob.core.windows.net;SharedAccessSignature=***",
    "Authorization: Bearer abc.def": "Authorization: ***",
    '{"a": "s3://K:S@b/x", "b": ["https://u:p@h"]}': '{"a": "s3://***@b/x", "b": ["https://***@h"]}',
}  # fmt: skip
KEPT = (
    "gs://bucket/a@b.png",
    "hdfs://host:8020/path/a@b",
    "abfs://container@account.dfs.core.windows.net/a",
    "s3://bucket/raw?region=eu&scheme=http&endpoint_override=127.0.0.1%3A9000",
    "photos/a:b@c.png",
    "s3://b/x: not there; ask me@home",
    "labels.csv?design=3",
    "--label-column key: no such column",
)


@pytest.mark.parametrize("text", REDACTED)
def test_secrets_are_left_out(text: str) -> None:
    assert without_secrets(text) == REDACTED[text]
    assert without_secrets(f"{text}: broken") == f"{REDACTED[text]}: broken"
    # what was left out stays out, and nothing more goes
    assert without_secrets(REDACTED[text]) == REDACTED[text]
    assert REDACTED[text] in str(FormatError(f"cannot read {text} (it is gone)")) or "(" not in text


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text and not is_redacted(text)


def test_what_was_left_out_is_known() -> None:
    assert all(is_redacted(text) for text in REDACTED.values() if text.startswith(("https", "s3", "gs", "hdfs")))


def test_json_stays_json() -> None:
    data = {"inputs": ["s3://K:S/+@b/x?sig=1", 'a "quoted" \\ https://u:p@h/"x"'], "n": 1}
    assert json.loads(without_secrets(json.dumps(data)))["inputs"][0] == "s3://***@b/x?sig=***"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Three images and a broken one, and a table that names one of them, in a store that is named with a password."""
    monkeypatch.setattr(retry.Clock, "sleep", lambda self, seconds: None)
    objects = MemoryFileSystem.objects
    objects.clear()
    for number in range(3):
        objects[f"{STORE}/media/{number}.png"] = picture(number)
    objects[f"{STORE}/media/broken.png"] = b"no picture"
    rows = [
        "0.png",
        f"{STORE}/media/1.png",
        f"https://me:{SECRET}@host/x.png",
        f"https://host/x.png?X-Amz-Signature={SECRET}",
    ]
    objects[f"{STORE}/media/t.csv"] = "\n".join(["path", *rows]).encode()
    yield objects
    objects.clear()


def found_in(folder: Path) -> list[str]:
    """Returns the files that hold the secret, as they are or as text in columns that are compressed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    as_text = {
        path: str([pq.read_table(path).to_pylist(), pq.read_metadata(path).metadata])
        if path.suffix == ".parquet"
        else ""
        for path in files
    }
    return [path.name for path in files if SECRET.encode() in path.read_bytes() or SECRET in as_text[path]]


@pytest.mark.parametrize("named", [f"{STORE}/media", f"{STORE}/media/t.csv", f"{STORE}/media/*.png"])
@pytest.mark.slow_beyond(1)
def test_no_file_of_a_dataset_and_no_line_has_a_password(
    named: str, store: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    options = (*OPTIONS, "--media-root", f"{STORE}/media") if named.endswith("csv") else OPTIONS
    built = run("build", named, "--output", tmp_path / "out", *options, "--json")
    assert built.code == 0, built.err
    assert not found_in(tmp_path / "out") and SECRET not in built.out + built.err
    record = json.loads((tmp_path / "out/_run.json").read_text())
    assert record["inputs"] == [named.replace(f"me:{SECRET}", "***")]
    again = run("build", "--output", tmp_path / "out", *OPTIONS, "--resume")
    assert (again.code, again.err.count("\n")) == (2, 1) and SECRET not in again.err
    assert "begun with credentials in" in again.err and again.err.endswith("again\n"), again.err
    resumed = run("build", named, "--output", tmp_path / "out", *options, "--resume")
    assert resumed.code == 0 and SECRET not in resumed.out + resumed.err, resumed.err
    assert not found_in(tmp_path / "out")
    for command in (
        ("report", "--html", tmp_path / "out/r.html", "--json"),
        ("verify", "--json"),
        ("inspect", 0, "--json"),
    ):
        shown = run(command[0], tmp_path / "out", *command[1:])
        assert shown.code == 0 and SECRET not in shown.out + shown.err
    assert not found_in(tmp_path / "out")


@pytest.mark.slow
def test_an_option_with_a_password_is_typed_again_as_an_input_is(
    store: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "t.csv").write_text("path\n0.png\n1.png\n")
    options = (*OPTIONS, "--media-root", f"{STORE}/media")
    assert run("build", tmp_path / "t.csv", "--output", tmp_path / "out", *options).code == 0
    assert not found_in(tmp_path / "out")
    again = run("build", "--output", tmp_path / "out", "--resume")
    assert again.err.startswith("--media-root mem://***@bucket/raw/media: begun with credentials in it"), again.err
    assert run("build", "--output", tmp_path / "out", "--resume", "--media-root", f"{STORE}/media").code == 0


@pytest.mark.slow
def test_a_failed_shard_and_a_bug_leave_no_password(
    store: dict[str, bytes], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (OSError(5, "the store is down", f"{STORE}/media/0.png"), KeyError(f"{STORE}/media/0.png")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(shard_transforms, "write_shard", fail)
        ended = run("build", f"{STORE}/media", "--output", tmp_path / type(error).__name__, *OPTIONS)
        assert ended.code == 1 and "mem://***@bucket" in ended.err and SECRET not in ended.err, ended.err
        assert not found_in(tmp_path / type(error).__name__)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", f"https://me:{SECRET}@host/a.png", "--output", "{out}"),
        ("build", f"https://host/a.png?sig={SECRET}", "--output", "{out}"),
        ("build", f"nope://me:{SECRET}@host/a", "--output", "{out}"),
        ("build", "{out}", "--output", f"nope://me:{SECRET}@host/a"),
        ("build", f"{STORE}/nothing", "--output", "{out}"),
        ("plan", f"{STORE}/nothing"),
        ("report", f"nope://me:{SECRET}@host/set"),
        ("inspect", f"nope://me:{SECRET}@host/set?token={SECRET}", "0"),
        ("verify", f"nope://me:{SECRET}@host/set"),
        ("diff", f"nope://me:{SECRET}@host/set", f"nope://me:{SECRET}@host/b"),
        ("build", "{out}", "--output", "{out}/x", f"s3://me:{SECRET}@b", "--nonsense", f"s3://me:{SECRET}@b"),
        ("report", "{out}", f"s3://me:{SECRET}@b"),
    ],
)
@pytest.mark.slow_beyond(1)
def test_no_error_line_has_a_password(
    arguments: tuple[str, ...], store: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    ended = run(*(argument.format(out=tmp_path / "out") for argument in arguments))
    assert ended.code and ended.err.count("\n") == 1 and SECRET not in ended.err, ended.err


def test_a_run_of_the_trainer_keeps_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"nope://me:{SECRET}@host/set"
    checkpoint.save(str(tmp_path), record(1) | {"config": {"eval": named}}, made(), ALONE)
    assert train([named, "--steps", "1"]) == 1 and train([named, "--json"]) == 1
    with pytest.raises(ValueError, match="--eval nope://\\*\\*\\*@host/set: begun with credentials in it"):
        resumed({"shards": "a"}, {"eval": "nope://***@host/set"}, "runs/a/step-00000001")
    assert (
        resumed({"shards": "a", "eval": named}, {"eval": "nope://***@host/set"}, "runs/a/step-00000001").eval == named
    )
    log = RunLog(str(tmp_path), tensorboard=False, step=0)
    log.add({"step": 1, "eval": named})
    log.close()
    assert not found_in(tmp_path)

    def fail(_: object, log: Callable[[dict[str, object]], None]) -> None:
        log({"step": 1, "eval": named})
        raise ValueError(f"{named}: no")

    monkeypatch.setattr(cli, "train", fail)
    assert train([named]) == train([named, "--json"]) == 2
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err and "nope://***@host/set" in captured.err


@pytest.mark.slow
def test_labels_of_a_signed_address_are_resumed_when_it_is_typed_again(
    store: dict[str, bytes], tmp_path: Path, run: Run
) -> None:
    named = f"{STORE}/labels?sig={SECRET}&as=.csv"
    store[named] = b"key,label\nmedia/0.png,a\nmedia/1.png,b\nmedia/2.png,a\n"
    built = ("build", f"{STORE}/media/*.png", "--output", tmp_path / "out", *OPTIONS, "--labels", named)
    assert run(*built).code == 0
    assert not found_in(tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["config"]["labels"].endswith("?sig=***&as=.csv")
    assert patchpack.verify(str(tmp_path / "out")) == []
    again = run(*built[:-2], "--resume")
    assert again.code == 2 and "begun with credentials" in again.err and SECRET not in again.err
    assert run(*built, "--resume").code == 0
