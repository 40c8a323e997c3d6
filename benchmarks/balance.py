"""Cost of a step of W sequences over its mean: random order, sorted runs, and steps after swaps.

    python benchmarks/balance.py [NUM_EXAMPLES [W]]

NUM_EXAMPLES: 100,000 by default, drawn from ../shared/lengths beside the checkout by a fixed seed; W: 64. For each dataset
and capacity: steps, maximum / mean of their attention costs in random order (mean), in runs of the sorted bins (worst,
share within 1.02), and balanced (mean, worst, share within 1.02, how many steps are not); CPU seconds of packing and
of balancing, one thread. `sides`: NaViT draws of benchmarks/planned.py with planned counts, 16,384 examples, one chunk
of a plan, max_segments 64. Then 16 chunks of 16,384 as a plan has them: steps, those over 1.02, the worst, and the sequences in no
step, all in the group of rests, in percent; beside them steps over and sequences in no step if each chunk kept its own.
"""

import numpy as np
from harness import SHARED, cpu, read, say_where
from planned import draws, side_candidates

from patchpack.pipeline.packing import pack
from patchpack.pipeline.packing.balance.balance import Steps, balance, in_steps
from patchpack.pipeline.packing.balance.swap import attention_costs
from patchpack.pipeline.packing.counts.planned import plan_counts
from patchpack.pipeline.packing.streaming import num_in_whole_bins

SETS = (
    ("side_uniform_64_256", (256, 512, 1024, 4096)),
    ("side_normal_64_256", (256, 512, 1024, 4096)),
    ("side_uniform_64_384", (576, 1024, 4096)),
    ("native_photos_4096", (4096,)),
    ("images_and_clips_4096", (4096,)),
    ("native_photos_16384", (16384,)),
    ("images_and_clips_16384", (16384,)),
)
CHUNK = 16_384


def steps_of(costs: np.ndarray, order: np.ndarray, size: int) -> Steps:
    """Returns the steps of bins stored in an order; those in no whole group are left out."""
    steps = Steps(size)
    steps.add(costs[order])
    return steps


def line(
    name: str, lengths: np.ndarray, bin_index: np.ndarray, capacity: int, max_segments: int | None, size: int
) -> str:
    """Returns a row of the table, but for the time of packing."""
    costs = attention_costs(lengths, bin_index)
    shuffled = np.argsort(np.random.Philox(key=1).random_raw(len(costs)), kind="stable")
    random_order, sorted_runs = (steps_of(costs, order, size) for order in (shuffled, in_steps(costs, size)))
    balanced, seconds = cpu(lambda: balance(lengths, bin_index, capacity, size, max_segments=max_segments))
    ours = steps_of(attention_costs(lengths, balanced.bin_index), balanced.order, size)
    total = ours.num_steps
    return (
        f"{name:24}{capacity:6}{total:7}{float(random_order.ratio_sum / total):9.3f}"
        f"{sorted_runs.worst:10.3f}{sorted_runs.num_within / total:9.4f}"
        f"{float(ours.ratio_sum / total):10.4f}{ours.worst:9.4f}{ours.num_within / total:9.4f}{total - ours.num_within:6}"
        f"{seconds:10.2f}"
    )


def plan_of(lengths: np.ndarray, capacity: int, size: int, *, rests: bool) -> tuple[Steps, int, int]:
    """Returns the steps of chunks whose rests are planned together or stay where they are, the sequences in no step, and all."""
    steps, in_none, num_sequences = Steps(size), 0, 0
    left: list[np.ndarray] = []
    for start in range(0, len(lengths), CHUNK):
        chunk = lengths[start : start + CHUNK]
        if rests:
            num_kept = num_in_whole_bins(chunk, capacity, 64)
            chunk, over = chunk[:num_kept], chunk[num_kept:]
            left.append(over)
        balanced = balance(chunk, pack(chunk, capacity, max_segments=64).bin_index, capacity, size, max_segments=64)
        order = balanced.even_steps(size).ravel() if rests else balanced.order
        if rests:
            left.append(chunk[~np.isin(balanced.bin_index, order)])
        steps.add(balanced.costs[order])
        in_none += len(order) % size
        num_sequences += len(order)
    if rests:
        rest = np.concatenate(left)
        balanced = balance(rest, pack(rest, capacity, max_segments=64).bin_index, capacity, size, max_segments=64)
        steps.add(balanced.costs[balanced.order])
        in_none += len(balanced.order) % size
        num_sequences += len(balanced.order)
    return steps, in_none, num_sequences


def main() -> None:
    """Prints the table."""
    values = read(__doc__, num_examples=100_000, w=64)
    num_examples, size = values.num_examples, values.w
    say_where()
    print(f"{'':24}{'':6}{'':7}   random    sorted runs          balanced")
    print(
        f"{f'{num_examples} examples':24}     L  steps     mean     worst   <=1.02      mean    worst   <=1.02  over"
        "  CPU s balance, pack"
    )
    for name, capacities in SETS:
        stored = np.load(SHARED / "lengths" / f"{name}.npy")
        drawn = np.random.Philox(key=2).random_raw(num_examples) % np.uint64(len(stored))
        lengths = stored[drawn].astype(np.int64)
        for capacity in capacities:
            packing, packed = cpu(lambda lengths=lengths, capacity=capacity: pack(lengths, capacity))
            print(f"{line(name, lengths, packing.bin_index, capacity, None, size)}{packed:9.2f}", flush=True)
    for capacity in (256, 512, 1024, 4096):
        candidates = side_candidates(draws(CHUNK), capacity)
        planned, packed = cpu(lambda some=candidates, capacity=capacity: plan_counts(some, capacity, max_segments=64))
        counts, bin_index = candidates.at(planned.choice), planned.packing.bin_index
        print(f"{line(f'sides {CHUNK}', counts, bin_index, capacity, 64, size)}{packed:9.2f}", flush=True)

    print(f"\n{'16 chunks':24}     L  steps   over    worst  in none %  chunks alone: over   worst  in none %")
    for name, capacities in SETS:
        stored = np.load(SHARED / "lengths" / f"{name}.npy")
        lengths = stored[np.random.Philox(key=3).random_raw(16 * CHUNK) % np.uint64(len(stored))].astype(np.int64)
        for capacity in capacities:
            row = f"{name:24}{capacity:6}"
            for rests in (True, False):
                steps, in_none, num_sequences = plan_of(lengths, capacity, size, rests=rests)
                row += f"{steps.num_steps:7}" if rests else f"{'':14}"
                row += f"{steps.num_steps - steps.num_within:7}{steps.worst:9.3f}{100 * in_none / num_sequences:11.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
