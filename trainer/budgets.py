"""Accuracy against cost: one model judged on several token budgets, as a table and an image (NaViT, arXiv 2307.06304, section 3.4)."""

import os
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

from patchpack.extras import MissingExtra
from patchpack.trainer.runlog import fresh

IMAGE_NAME = "budgets.png"


class Judged(TypedDict):
    """What was found on one dataset: tokens and forward GFLOPs an example, and the mean loss and accuracy, if there are classes."""

    eval: str
    tokens_per_example: float
    gflops_per_example: float
    loss: float | None
    accuracy: float | None


def table(found: Sequence[Judged]) -> Iterator[str]:
    """Yields the lines of a table, the cheapest first."""
    yield f"{'tokens/example':>14} {'GFLOPs/example':>15} {'accuracy':>9} {'loss':>9}  dataset"
    for each in sorted(found, key=lambda each: each["gflops_per_example"]):
        accuracy, loss = (
            f"{value:9.4f}" if value is not None else f"{'-':>9}" for value in (each["accuracy"], each["loss"])
        )
        yield f"{each['tokens_per_example']:14.1f} {each['gflops_per_example']:15.4f} {accuracy} {loss}  {each['eval']}"


def draw(found: Sequence[Judged], folder: str) -> str:
    """Draws accuracy (or loss, without classes) against cost, and returns the path of the image.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name, "train --budget needs", "report") from error
    name: Literal["accuracy", "loss"] = "accuracy" if any(each["accuracy"] is not None for each in found) else "loss"
    points = sorted(
        (each["gflops_per_example"], value, each["tokens_per_example"])
        for each in found
        if (value := each[name]) is not None
    )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([cost for cost, _, _ in points], [value for _, value, _ in points], marker="o")
    for cost, value, tokens in points:
        axes.annotate(f"{tokens:.0f} tokens", (cost, value), (4, -12), textcoords="offset points")
    axes.set(xlabel="forward GFLOPs an example", ylabel=name)
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path = os.path.join(folder, IMAGE_NAME)
    figure.savefig(fresh(path), dpi=120)
    return path
