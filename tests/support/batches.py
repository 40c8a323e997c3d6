"""Batches of small random segments as `PackedShards` gives them, made by hand, and single segments of them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from patchpack.schemas import Layout

Batch = dict[str, torch.Tensor]
Grid = tuple[int, int, int]
OF_TOKENS = ("tokens", "positions", "segment_ids", "ranks")


def batch_of(
    layout: Layout, rows: Sequence[Sequence[Grid]], *, seed: int = 0, num_classes: int = 3, unlabelled: bool = False
) -> Batch:
    """Returns sequences of noise, a segment a grid, gaps between them where the layout aligns; padding is 0.

    Args:
        layout: of the sequences.
        rows: grids of each.
        seed: of tokens and labels.
        num_classes: of the labels.
        unlabelled: whether some have none.
    """
    generator = np.random.default_rng(seed)
    size, length, slots = len(rows), layout.sequence_length, layout.max_segments
    arrays: dict[str, Any] = {
        "tokens": np.zeros((size, length, layout.token_width), np.uint8),
        "segment_ids": np.zeros((size, length), np.int32),
        "positions": np.zeros((size, length, 3), np.int32),
        "starts": np.zeros((size, slots), np.int32),
        "lengths": np.zeros((size, slots), np.int32),
        "grids": np.zeros((size, slots, 3), np.int32),
        "labels": np.full((size, slots), -1, np.int64),
        "weights": np.zeros((size, slots), np.float32),
        "index": np.arange(size),
    }
    for row, grids in enumerate(rows):
        start = 0
        for slot, grid in enumerate(grids):
            count = math.prod(grid)
            run = slice(start, start + count)
            arrays["tokens"][row, run] = generator.integers(0, 256, (count, layout.token_width))
            arrays["segment_ids"][row, run] = slot + 1
            arrays["positions"][row, run] = np.indices(grid).reshape(3, -1).T
            arrays["starts"][row, slot], arrays["lengths"][row, slot], arrays["grids"][row, slot] = start, count, grid
            arrays["labels"][row, slot] = generator.integers(-1 if unlabelled else 0, num_classes)
            arrays["weights"][row, slot] = 1
            start += layout.slots(count)
    arrays["num_segments"] = (arrays["lengths"] > 0).sum(1).astype(np.int32)
    arrays["num_tokens"] = arrays["lengths"].sum(1).astype(np.int32)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def make_batch(layout: Layout, size: int = 4, seed: int = 0, *, most: Grid = (3, 4, 4)) -> Batch:
    """Returns sequences of at least two random segments and some padding."""
    generator = np.random.default_rng(seed)
    rows: list[list[Grid]] = []
    while len(rows) < size:
        grids: list[Grid] = []
        used = 0
        while len(grids) < layout.max_segments and (len(grids) < 2 or generator.random() < 0.8):
            t, h, w = (int(side) for side in generator.integers(1, [side + 1 for side in most]))
            # a token of padding at the end
            if used + t * h * w >= layout.sequence_length:
                break
            grids.append((t, h, w))
            used += layout.slots(t * h * w)
        if len(grids) >= 2:
            rows.append(grids)
    return batch_of(layout, rows, seed=seed, unlabelled=True)


def segments_of(batch: Batch) -> Iterator[tuple[int, int, int, int]]:
    """Yields row, slot, start and length of every segment."""
    for row, slot in (batch["lengths"] > 0).nonzero().tolist():
        yield row, slot, int(batch["starts"][row, slot]), int(batch["lengths"][row, slot])


def alone(batch: Batch, row: int, slot: int) -> Batch:
    """Returns one segment as the only one of a sequence without padding."""
    start, length = int(batch["starts"][row, slot]), int(batch["lengths"][row, slot])
    single = {name: batch[name][row : row + 1, start : start + length] for name in OF_TOKENS if name in batch}
    single["segment_ids"] = torch.ones(1, length, dtype=torch.int32)
    single |= {name: batch[name][row : row + 1, slot : slot + 1] for name in ("lengths", "grids", "labels", "weights")}
    single["starts"] = torch.zeros(1, 1, dtype=torch.int32)
    single["index"] = batch["index"][row : row + 1]
    return single | {"num_segments": torch.ones(1), "num_tokens": single["lengths"].sum(1)}
