"""What packing buys the trainer: images a second of packed sequences, against batches padded to their longest, and squares.

    python benchmarks/trainer.py [LENGTHS] [--rounds 5]

The same images (sides 64 to 256 px, aspects of cameras, patches of 16 px: 16 to 256 tokens) through the same model (a NaViT of the trainer's
default size, mean pooling), forward, backward and update, in float32 on one thread. Padded: batches of 128 images in the order drawn, each
padded to the longest of its batch, the padding masked. Square: images of 196 tokens, as many tokens as the packed ones, a batch without any
padding or mask: nothing can be faster at equal tokens. CPU seconds, medians of rounds that take turns; padded = 1. Where there is CUDA, the
table of `benchmarks/trainer_gpu.py` follows.
"""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from harness import ROOT, read, say_where

# the maker of batches is the tests'
sys.path.append(str(ROOT / "tests"))

from support.batches import Batch, batch_of

from patchpack.pipeline.packing import pack
from patchpack.pipeline.sampling.draws import words
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer import attention
from patchpack.trainer.config import Config
from patchpack.trainer.models import make_shape
from patchpack.trainer.optimisation import make_optimizer
from patchpack.trainer.vit import ViT

ASPECTS = ((4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (1, 1))
NUM_CLASSES = 1000
# for 1,024 tokens and fewer; as many more for longer sequences, so that they are full
NUM_IMAGES = 256
# images of a step of 128 images or more are as long as the longest there is
PADDED_BATCH = 128
SQUARE = (1, 14, 14)


def draw_grids(count: int, seed: int) -> list[tuple[int, int, int]]:
    """Returns grids of images as NaViT draws them: sides of 64 to 256 px, by a truncated normal of mean -0.5."""
    rule = Resolution.parse("side:64-256~normal(-0.5,1)")
    grids = []
    for word in words(count, seed, "benchmark"):
        height, width = ASPECTS[word % len(ASPECTS)]
        rows, columns = rule.request(200 * height, 200 * width, 1, (16, 16), word).grid
        # sides are those of the target, whose nearest grid may have a few tokens more
        grids.append((1, rows, min(columns, 256 // rows)))
    return grids


def sequences(rows: list[list[tuple[int, int, int]]], length: int) -> Batch:
    """Returns sequences of noise that hold the grids of each row."""
    return batch_of(Layout(length, max(map(len, rows)), (1, 16, 16)), rows, num_classes=NUM_CLASSES)


def packed(grids: list[tuple[int, int, int]], length: int) -> Batch:
    """Returns the images packed into sequences."""
    packing = pack([math.prod(grid) for grid in grids], length, max_segments=64)
    rows = [[grids[at] for at in members] for members in packing.members()]
    return sequences(rows, length)


def padded(grids: list[tuple[int, int, int]]) -> list[Batch]:
    """Returns batches of one image a row, padded to the longest."""
    parts = [grids[start : start + PADDED_BATCH] for start in range(0, len(grids), PADDED_BATCH)]
    return [sequences([[grid] for grid in part], max(map(math.prod, part))) for part in parts]


def model_of(config: Config, backend: str, batches: list[Batch], device: torch.device) -> ViT:
    """Returns a model for batches of these shapes."""
    length, slots = (max(batch[name].shape[1] for batch in batches) for name in ("tokens", "labels"))
    longest = max(int(batch["lengths"].max()) for batch in batches)
    limits: Limits = {"max_segments": slots, "max_segment_tokens": longest, "max_grid": [1, 64, 64], "max_labels": 1}
    torch.manual_seed(0)
    layout = Layout(length, slots, (1, 16, 16))
    return ViT(make_shape(config, 64), [layout], limits, NUM_CLASSES, attention=backend).to(device)


def steps(model: ViT, batches: list[Batch], config: Config) -> Callable[[], None]:
    """Returns what trains on all batches once."""
    optimizer = make_optimizer(model, config)

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            model.loss(model(batch), batch).mean.backward()
            optimizer.step()

    return run


def split(batch: Batch, size: int) -> list[Batch]:
    """Returns a batch in parts of some sequences."""
    count = len(batch["tokens"])
    return [{name: tensor[at : at + size] for name, tensor in batch.items()} for at in range(0, count, size)]


class Unmasked:
    """Attention over whole rows, or with a mask of the keys that are there, in the place of a plan of segments."""

    def __init__(self, has_padding: bool) -> None:
        self._has_padding = has_padding

    def __call__(self, backend: str, queries: attention.Runs, keys: attention.Runs | None = None) -> attention.Plan:
        mask = (queries.segment_ids() > 0)[:, None, None, :] if self._has_padding else None
        return attention.Plan("dense", mask)


def on_cpu(length: int, rounds: int) -> None:
    """Prints one line of the table."""
    from patchpack.trainer import vit

    config = Config("-", pool="mean")
    grids = draw_grids(NUM_IMAGES * max(1, length // 1024), 0)
    tokens = sum(map(math.prod, grids))
    together = split(packed(grids, length), max(1, 4096 // length))
    apart = padded(grids)
    squares = split(sequences([[SQUARE]] * round(tokens / 196), 196), 21)
    device = torch.device("cpu")
    ways = {
        "dense": (steps(model_of(config, "dense", together, device), together, config), None),
        "blocks": (steps(model_of(config, "blocks", together, device), together, config), None),
        "padded": (steps(model_of(config, "dense", apart, device), apart, config), Unmasked(has_padding=True)),
        "square": (steps(model_of(config, "dense", squares, device), squares, config), Unmasked(has_padding=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    plan = attention.make_plan
    for _ in range(rounds + 1):
        for name, (run, planner) in ways.items():
            vit.make_plan = planner or plan
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    vit.make_plan = plan
    # the first round warms up
    taken = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    fill = tokens / sum(batch["segment_ids"].numel() for batch in together)
    ratios = {name: taken["padded"] / value for name, value in taken.items()}
    print(
        f"L = {length:5}  fill {fill:.3f}  images/s, padded = 1: dense {ratios['dense']:.2f}, blocks {ratios['blocks']:.2f}, "
        f"square at equal tokens {ratios['square']:.2f}; blocks / square {ratios['blocks'] / ratios['square']:.2f}; "
        f"{len(grids) / taken['blocks']:.0f} images/s",
        flush=True,
    )


def main() -> None:
    options = read(__doc__, {"rounds": 5}, lengths="256,1024,4096")
    torch.set_num_threads(1)
    say_where("torch")
    shape = dataclasses.asdict(make_shape(Config("-"), 64))
    print(", ".join(f"{name} {value}" for name, value in shape.items()), flush=True)
    lengths = [int(length) for length in options.lengths.split(",")]
    for length in lengths:
        on_cpu(length, options.rounds)
    if torch.cuda.is_available():
        from trainer_gpu import on_gpu

        on_gpu(torch.device("cuda"), [1024, 4096, 16384], ["S", "B", "L"], 65536, 10)


if __name__ == "__main__":
    main()
