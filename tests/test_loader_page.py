"""The code of docs/loader.md runs as it stands, and gives what the page says."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from support.synthetic_set import write_set
from test_readme import block

from patchpack.trainer.data import PackedShards

SAID = {
    # one step of two processes with two sequences each has gone
    "resume": ("print(len(rest), len(set(rest)), state['sequence'])", "5 5 8"),
    "ready": (
        "print(pixels.dtype, len(offsets), longest, *slots.shape, *mask.shape)",
        "torch.bfloat16 11 24 2 5 2 1 24 24",
    ),
    "mixture": ("print(state['position'], len(epochs), set(source.tolist()) <= {0, 1})", "40 2 True"),
    "dataloader": ("print(*tokens.shape, sequence['tokens'].dtype, len(dataset))", "24 12 uint8 13"),
}


def test_the_code_for_a_store_names_arguments_that_there_are() -> None:
    code = block("docs/loader.md", "store")
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert {keyword.arg for keyword in call.keywords} <= set(inspect.signature(PackedShards).parameters)


@pytest.mark.parametrize("name", SAID)
@pytest.mark.slow_beyond(1)
def test_the_code_of_the_page_runs(name: str, tmp_path: Path) -> None:
    write_set(str(tmp_path / "demo/shards"), classes=("cat", "dog"))
    line, due = SAID[name]
    code = block("docs/loader.md", name).replace("media/red/image-000.png", "synthetic/1.png")
    done = subprocess.run([sys.executable, "-c", f"{code}{line}\n"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == due, done.stderr
