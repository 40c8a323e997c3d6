"""What a GPU makes of packed sequences: ViT-S, B and L, every backend, against padded batches and squares of as many tokens.

    python benchmarks/trainer_gpu.py [LENGTHS] [--models S,B,L] [--tokens 65536] [--steps 10] [--device cuda]

Each step is one batch of about --tokens tokens of the images of `benchmarks/trainer.py` (sides of 64 to 256 px), forward, backward and update,
bfloat16, compiled into one graph. Prints images and real tokens a second, the useful share of the device's peak (pairs inside segments and
real tokens only), memory and the seconds of compiling. `square` is as many tokens without any padding, in rows of 196 without a mask;
`padded` is an image a row, a mask of keys. Medians of --steps. Last comes what share of a step the whole trainer waits for its data: a ViT
of the first model's size on shards of 1,024 tokens, digests checked, batches copied one step ahead. `benchmarks/trainer.py` runs it where there
is CUDA; with --device cpu it only shows that it runs.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from harness import ROOT, read, say_where

# the maker of datasets is the tests'
sys.path.append(str(ROOT / "tests"))

from support.synthetic_set import write_set

from patchpack.schemas import Layout
from patchpack.trainer import attention, vit
from patchpack.trainer.config import Config
from patchpack.trainer.metrics import peak_flops
from patchpack.trainer.optimisation import make_optimizer
from patchpack.trainer.train import train
from trainer import PADDED_BATCH, SQUARE, Batch, Unmasked, draw_grids, model_of, packed, padded, sequences, split

# DeiT, arXiv 2012.12877, table 1; ViT, arXiv 2010.11929, table 1
SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "tiny": (64, 2, 2)}


class Way(NamedTuple):
    """How a step's images are laid out: the batches of a step, the backend, and what stands in the place of its plan, if anything."""

    batches: list[Batch]
    backend: str
    planner: Callable[..., attention.Plan] | None


class Found(NamedTuple):
    """What was measured of one way, a step."""

    seconds: float
    images: int
    tokens: int
    flops: float
    gigabytes: float
    compiling: float


def ways(length: int, tokens: int, backends: list[str]) -> dict[str, Way]:
    """Returns what is compared, all of about as many real tokens a step."""
    grids = draw_grids(4 * tokens // 50, 0)
    rows = max(1, tokens // length)
    together = split(packed(grids, length), rows)[0]
    count = int(together["num_segments"].sum())
    apart = padded(grids[:count])
    squares = sequences([[SQUARE]] * round(int(together["num_tokens"].sum()) / 196), 196)
    found = {f"packed, {backend}": Way([together], backend, None) for backend in backends}
    found["padded"] = Way(
        [batch for batch in apart if len(batch["tokens"]) == PADDED_BATCH] or apart, "dense", Unmasked(has_padding=True)
    )
    found["square"] = Way([squares], "dense", Unmasked(has_padding=False))
    return found


def measure(way: Way, config: Config, device: torch.device, steps: int) -> Found:
    """Returns what steps of one way take."""
    torch.compiler.reset()
    plan = attention.make_plan
    vit.make_plan = way.planner or plan
    try:
        model = model_of(config, way.backend, way.batches, device)
        model.compile(fullgraph=True)
        optimizer = make_optimizer(model, config)
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in way.batches]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def step() -> float:
            begun = time.perf_counter()
            for batch in batches:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16):
                    output = model(batch)
                model.loss(output, batch).mean.backward()
                optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - begun

        compiling = step()
        step()
        seconds = statistics.median(step() for _ in range(steps))
        flops = sum(float(model.flops(batch)) for batch in batches)
    finally:
        vit.make_plan = plan
    images, tokens = (sum(int(batch[name].sum()) for batch in batches) for name in ("num_segments", "num_tokens"))
    most = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
    return Found(seconds, images, tokens, flops, most, compiling - seconds)


def show(name: str, found: Found, padded: Found, peak: float | None) -> None:
    """Prints a line of the table."""
    rate = found.images / found.seconds
    mfu = "" if peak is None else f"  useful MFU {found.flops / found.seconds / peak:.3f}"
    against = rate / (padded.images / padded.seconds)
    print(
        f"  {name:<16} {rate:9.0f} images/s ({against:5.2f} x padded) {found.tokens / found.seconds:11.0f} real tokens/s{mfu}"
        f"  {found.gigabytes:6.1f} GB  compiled in {found.compiling:5.1f} s",
        flush=True,
    )


def on_gpu(device: torch.device, lengths: list[int], models: list[str], tokens: int, steps: int) -> None:
    """Prints a table a model and length."""
    peak = peak_flops(device, None)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{name}; peak {'not known' if peak is None else f'{peak / 1e12:.0f} TFLOP/s'}; about {tokens} tokens a step, bfloat16, compiled"
    )
    backends = ["dense", "varlen"] if device.type == "cuda" else ["dense", "blocks"]
    for model in models:
        dim, depth, heads = SHAPES[model]
        config = Config("-", dim=dim, depth=depth, heads=heads, pool="mean")
        for length in lengths:
            print(f"ViT-{model}, L = {length}", flush=True)
            found: dict[str, Found] = {}
            for way_name, way in ways(length, tokens, backends).items():
                try:
                    found[way_name] = measure(way, config, device, steps)
                except torch.OutOfMemoryError:
                    print(f"  {way_name:<16} out of memory", flush=True)
            for way_name, each in found.items():
                show(way_name, each, found.get("padded", each), peak)


def waiting(model: str, tokens: int, steps: int, device: str) -> float:
    """Returns the share of a step that the trainer waits for its data, in the second half of a run."""
    dim, depth, heads = SHAPES[model]
    length, shares = 1024, []
    with tempfile.TemporaryDirectory() as folder:
        # a few hundred megabytes, which stay in the page cache
        write_set(folder, layouts=(Layout(length, 64, (1, 16, 16)),), rows_per_shard=(64,) * 6, classes=("a", "b"))
        options = {"shards": folder, "dim": dim, "depth": depth, "heads": heads, "model": "vit", "device": device}
        options |= {"batch_size": max(1, tokens // length), "steps": 8 * steps, "log_every": steps}
        options |= {"compile": device != "cpu"}
        train(options, lambda line: shares.append(float(str(line["waiting"]))) if "waiting" in line else None)
    return statistics.mean(shares[len(shares) // 2 :])


def main() -> None:
    options = read(
        __doc__, {"models": "S,B,L", "tokens": 65536, "steps": 10, "device": "cuda"}, lengths="1024,4096,16384"
    )
    say_where("torch")
    lengths = [int(length) for length in options.lengths.split(",")]
    models = options.models.split(",")
    on_gpu(torch.device(options.device), lengths, models, options.tokens, options.steps)
    share = waiting(models[0], options.tokens, options.steps, options.device)
    print(f"ViT-{models[0]}, the whole trainer: {share:.4f} of a step waits for data (at most 0.01)")


if __name__ == "__main__":
    main()
