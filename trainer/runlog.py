"""Where log lines go besides the terminal: log.jsonl in the run's folder, TensorBoard where asked for; and curves of them."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from patchpack.extras import MissingExtra
from patchpack.schemas import FormatError
from patchpack.schemas.errors import without_secrets

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME, CURVES_NAME = "log.jsonl", "curves.png"


class RunLog:
    """Writes log lines below a run's folder, each flushed; a run that goes on appends."""

    def __init__(self, folder: str, *, tensorboard: bool, step: int) -> None:
        """Opens the log.

        Args:
            folder: of the run's checkpoints.
            tensorboard: whether events are written, too.
            step: that the run begins behind: lines of later steps, which a killed run has left, go.

        Raises:
            MissingExtra: TensorBoard is not installed.
        """
        path = os.path.join(folder, LOG_NAME)
        kept = [line for line in read_log(folder) if int(line.get("step", 0)) <= step] if os.path.exists(path) else []
        # whole or not at all, and from then on line by line
        with open(fresh(f"{path}.tmp"), "x") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(f"{path}.tmp", path)
        self._file = open(path, "a")  # noqa: SIM115 (closed by `close`)
        self._events = _events(folder) if tensorboard else None

    def add(self, values: Mapping[str, object]) -> None:
        """Writes one line."""
        self._file.write(without_secrets(json.dumps(values)) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self._events.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Ends the log."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def fresh(path: str) -> str:
    """Returns a path that no file has any more: a link of that name, in a run that was handed over, would be written through."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return path


def read_log(folder: str) -> list[dict[str, Any]]:
    """Returns the lines of a run's log; one that was cut off by a kill is left out.

    Raises:
        FormatError: there is none.
    """
    path, lines = os.path.join(folder, LOG_NAME), []
    try:
        with open(path) as file:
            for text in file:
                if text.endswith("\n"):
                    lines.append(json.loads(text))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: no log ({error}); a run with --checkpoint writes one; check the path") from error
    return lines


def plot(folder: str) -> str:
    """Draws the loss and the throughput of a run, and returns the path of the image.

    Raises:
        FormatError: there is no log.
        MissingExtra: matplotlib is not installed.
    """
    lines = read_log(folder)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, "train --plot needs", "report") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            upper.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    upper.set_ylabel("loss")
    upper.legend(frameon=False)
    points = [(line["step"], line["tokens_per_s"]) for line in lines if "tokens_per_s" in line]
    if points:
        lower.plot(*zip(*points, strict=True), color="tab:green")
    lower.set_ylabel("real tokens a second")
    lower.set_xlabel("step")
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path = os.path.join(folder, CURVES_NAME)
    figure.savefig(fresh(path), dpi=120)
    return path


def _events(folder: str) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, "train --tensorboard needs", "tensorboard") from error
    path = os.path.join(folder, "tensorboard")
    if os.path.islink(path):
        raise ValueError(f"{path}: a link; a run writes below its own folder only; remove the link")
    return SummaryWriter(path)
