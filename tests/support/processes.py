"""Runs of the trainer in processes of their own, one or many."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# a run of seconds
TINY_RUN: dict[str, Any] = {
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "device": "cpu",
    "batch_size": 2,
    "lr": 3e-3,
    "warmup_steps": 0,
}


def command(processes: int, *arguments: str) -> list[str]:
    """Returns the command of a run of so many processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    own = start if processes > 1 else [sys.executable, "-m"]
    return [*own, "patchpack", "train", *arguments, "--json", "--log-every", "1"]


def run(processes: int, *arguments: str) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(processes, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if line["event"] == "log" and "loss" in line]
