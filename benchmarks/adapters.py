"""What packing buys a model of timm: images a second through the adapter, against timm's own padded batches.

    python benchmarks/adapters.py [LENGTH] [--rounds 5]

One NaFlexViT (192 wide, 4 blocks, mean pooling) of random weights, the images of `benchmarks/trainer.py`, forward and backward in float32 on
one thread. Padded: batches of 32 images, each padded to the longest of its batch, as timm's loader makes them. CPU seconds, medians of
rounds that take turns. Needs the extra adapters; beside a torch without CUDA the tests' `need_other_libraries` lets timm be imported.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import read, say_where

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from trainer import draw_grids, packed, sequences, split

NUM_CLASSES, PADDED = 1000, 32
SHAPE: dict[str, Any] = {"embed_dim": 192, "depth": 4, "num_heads": 3, "num_classes": NUM_CLASSES}


def padded(grids: list[tuple[int, int, int]]) -> list[dict[str, torch.Tensor]]:
    """Returns what timm's forward takes: batches of one image a row, padded to their longest."""
    batches = []
    for start in range(0, len(grids), PADDED):
        part = grids[start : start + PADDED]
        longest = max(map(math.prod, part))
        made = sequences([[grid] for grid in part], longest)
        batches.append(
            {
                "patches": (made["tokens"] / 127.5 - 1),
                "patch_coord": made["positions"][..., 1:].long(),
                "patch_valid": made["segment_ids"] > 0,
            }
        )
    return batches


def ways(length: int) -> tuple[dict[str, Callable[[], None]], int]:
    """Returns what is compared, and how many images each sees."""
    from support.other_libraries import need_other_libraries

    need_other_libraries()
    import timm

    from patchpack.trainer.adapters.naflexvit import NaFlexViT

    torch.manual_seed(0)
    grids = draw_grids(256 * max(1, length // 1024), 0)
    together = split(packed(grids, length), max(1, 4096 // length))
    slots = max(batch["labels"].shape[1] for batch in together)
    limits: Limits = {"max_segments": slots, "max_segment_tokens": 256, "max_grid": [1, 64, 64], "max_labels": 1}
    layout = Layout(length, slots, (1, 16, 16))
    adapter = NaFlexViT(timm.create_model("naflexvit_base_patch16_gap", **SHAPE), layout, limits, "blocks")
    alone, apart = timm.create_model("naflexvit_base_patch16_gap", **SHAPE), padded(grids)

    def by_adapter() -> None:
        for batch in together:
            adapter.loss(adapter(batch), batch).mean.backward()

    def by_timm() -> None:
        for batch in apart:
            alone(batch).logsumexp(dim=1).mean().backward()

    return {"packed": by_adapter, "padded": by_timm}, len(grids)


def main() -> None:
    options = read(__doc__, {"rounds": 5}, length=1024)
    torch.set_num_threads(1)
    say_where("torch", "timm")
    compared, images = ways(options.length)
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(options.rounds + 1):
        for name, run in compared.items():
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    taken = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(
        f"L = {options.length}: packed {images / taken['packed']:.1f} images/s, timm's padded {images / taken['padded']:.1f}; "
        f"packed / padded {taken['padded'] / taken['packed']:.2f}"
    )


if __name__ == "__main__":
    main()
