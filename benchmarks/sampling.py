"""Resolution rules: aspect error, use of the budget and time, ours beside the field's.

    python benchmarks/sampling.py [NUM_EXAMPLES]

NUM_EXAMPLES: 20,000 by default, sides uniform in 200..2,000 px and aspects between 1:4 and 4:1, patches of 16 px. Of each rule: aspect
error (larger over smaller, minus 1) on average, at the 99th percentile and at worst; tokens over the budget on average and at
least; examples over budget or without a token. `tokens:N` is ours; the field's: bisection of the scale with sides rounded up (SigLIP 2's
NaFlex), the floor of Pix2Struct, Qwen2-VL's smart resize without its minimum of one cell, and NaViT's resize of the effective side with
both sides rounded. Then microseconds of CPU an example of whole sampling, every draw included, medians of seven rounds.
"""

import math
from collections.abc import Callable

import numpy as np
from harness import medians, read, say_where

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.pipeline.stages.records import Example, Source
from patchpack.pipeline.stages.sample import sample

PATCH = 16
Grid = tuple[int, int]
Rule = Callable[[int, int, int], Grid]


def ours(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of tokens:N."""
    return Resolution.parse(f"tokens:{budget}").request(height, width, 1, (PATCH, PATCH), 0).grid


def drawn(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of side:S with S x S px of that many tokens."""
    side = math.isqrt(budget) * PATCH
    return Resolution.parse(f"side:{side}-{side}").request(height, width, 1, (PATCH, PATCH), 0).grid


def naflex(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of the largest scale, by bisection, whose sides, rounded up to patches, fit the budget."""
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        fits = math.ceil(height * scale / PATCH) * math.ceil(width * scale / PATCH) <= budget
        low, high = (scale, high) if fits else (low, scale)
    return math.ceil(height * low / PATCH), math.ceil(width * low / PATCH)


def pix2struct(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of the scale that the budget gives, rounded down."""
    scale = math.sqrt(budget * (PATCH / height) * (PATCH / width))
    return max(1, math.floor(scale * height / PATCH)), max(1, math.floor(scale * width / PATCH))


def smart_resize(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of Qwen2-VL's resize to at most that many pixels, as first published."""
    rows, columns = round(height / PATCH), round(width / PATCH)
    if rows * columns > budget:
        beta = math.sqrt(height * width / (budget * PATCH * PATCH))
        rows, columns = math.floor(height / beta / PATCH), math.floor(width / beta / PATCH)
    return rows, columns


def rounded(height: int, width: int, budget: int) -> Grid:
    """Returns the grid of the effective side with both sides rounded to patches."""
    scale = math.sqrt(budget * PATCH * PATCH / (height * width))
    return max(1, round(height * scale / PATCH)), max(1, round(width * scale / PATCH))


RULES: dict[str, Rule] = {
    "tokens:N": ours,
    "side:S-S": drawn,
    "NaFlex": naflex,
    "Pix2Struct": pix2struct,
    "smart resize": smart_resize,
    "rounded sides": rounded,
}


def images(num_examples: int) -> list[tuple[int, int]]:
    """Returns (height, width) of each example."""
    rng, sizes = np.random.default_rng(0), []
    while len(sizes) < num_examples:
        height, width = map(int, rng.integers(200, 2001, 2))
        if max(height, width) <= 4 * min(height, width):
            sizes.append((height, width))
    return sizes


def tell_quality(sizes: list[tuple[int, int]], budget: int) -> None:
    """Prints a table of the rules at one budget."""
    print(f"\nN = {budget}: aspect error, %{'':<8}mean     p99   worst   tokens / N    least   over   empty")
    for name, rule in RULES.items():
        errors, used, over, empty = [], [], 0, 0
        for height, width in sizes:
            h, w = rule(height, width, budget)
            if min(h, w) < 1:
                empty += 1
                continue
            over += h * w > budget
            ratio = h * width / (w * height)
            errors.append(100 * (max(ratio, 1 / ratio) - 1))
            used.append(h * w / budget)
        print(
            f"{name:<30}{np.mean(errors):>8.2f}{np.percentile(errors, 99):>8.2f}{max(errors):>8.2f}{np.mean(used):>13.3f}"
            f"{min(used):>9.3f}{over:>7}{empty:>8}",
            flush=True,
        )


TIMED: dict[str, dict[str, object]] = {
    "side:64-256": {},
    "side, truncated normal": {"resolution": "side:64-384~normal(-0.5,1)"},
    "tokens:128,256,576,784,1024": {"resolution": "tokens:128,256,576,784,1024"},
    "pix2struct:1024": {"resolution": "pix2struct:1024"},
    "pixels": {"resolution": "pixels:3136-200704", "tubelet": (1, 14, 14), "grid_multiple": 2},
    "side, patch sizes, beta, crop": {
        "resolution": "side:64-384~normal(-0.5,1)", "patch_sizes": (16, 24, 32), "drop_tokens": "beta:0.3,0.6",
        "crop": "inception:0.3-1", "flip": True,
    },
}  # fmt: skip


def tell_time(sizes: list[tuple[int, int]]) -> None:
    """Prints microseconds an example of whole sampling."""
    examples = [Example(Source(f"{n}", 0, "", 1), 0, f"{n:032x}", *size) for n, size in enumerate(sizes[:2000])]
    ways: dict[str, Callable[[], object]] = {}
    for name, options in TIMED.items():
        policy = PlanConfig(**options).policy  # type: ignore[arg-type]
        ways[name] = lambda policy=policy: [sample(example, 0, policy) for example in examples]
    print("\nCPU, microseconds an example")
    for name, seconds in medians(ways, 7).items():
        print(f"{name:<32}{1e6 * seconds / len(examples):>8.1f}", flush=True)


def main() -> None:
    """Prints the tables."""
    sizes = images(read(__doc__, num_examples=20_000).num_examples)
    say_where()
    for budget in (64, 256, 1024):
        tell_quality(sizes, budget)
    tell_time(sizes)


if __name__ == "__main__":
    main()
