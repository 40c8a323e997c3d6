"""CPU seconds and memory of `plan --compare` on examples as probed: four settings and the field's packers, nothing decoded.

    python benchmarks/whatif.py [NUM_EXAMPLES]

NUM_EXAMPLES: 1,000,000 by default, synthetic images of 200 to 2,000 px and aspects 1:2 to 2:1. For each setting: CPU seconds of
planning (ours) and of the packers of the field, sequences and padding of each; at the end the peak memory of the process
beside that before the first setting.
"""

import resource
from functools import partial

import numpy as np
from harness import cpu, read, say_where

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.packing.field import FIELD_PACKERS
from patchpack.pipeline.whatif.engine import pack_as, plan_examples
from patchpack.pipeline.whatif.examples import Examples
from patchpack.pipeline.whatif.settings import parse_setting

SETTINGS = (
    "--seed 0",
    "--sequence-length 4096 --max-segments 64",
    "--recipe navit",
    "--drop-tokens constant:0.5 --sequence-length 512 --max-segments 16",
)


def drawn(count: int) -> Examples:
    """Returns images of random sizes."""
    rng = np.random.default_rng(0)
    sides, aspects = rng.integers(200, 2000, count), 2.0 ** rng.uniform(-0.5, 0.5, count)
    heights, widths = (np.rint(side).astype(np.int64) for side in (sides * aspects, sides / aspects))
    keys = [f"photos/{number % 1000:03}/{number:08}.jpg" for number in range(count)]
    return Examples(keys, np.zeros(count, dtype=np.int64), heights, widths)


def peak_mb() -> int:
    """Returns the most memory that this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def main() -> None:
    """Prints the table."""
    count = read(__doc__, num_examples=1_000_000).num_examples
    say_where("ortools")
    examples = drawn(count)
    before = peak_mb()
    print(f"{'setting':<46}{'packer':<20}{'sequences':>10}{'padding':>9}{'CPU s':>8}")
    for text in SETTINGS:
        config = parse_setting(text, PlanConfig()).config
        planned, seconds = cpu(partial(plan_examples, examples, config))
        answers = [("ours", planned.ours, seconds)]
        for packer in FIELD_PACKERS:
            answers.append((packer, *cpu(partial(pack_as, packer, planned, config))))
        for packer, tally, seconds in answers:
            padding = 1 - tally.num_tokens / (tally.num_sequences * config.sequence_length)
            print(f"{text:<46}{packer:<20}{tally.num_sequences:>10,}{padding:>9.4f}{seconds:>8.1f}", flush=True)
    print(f"peak memory {peak_mb():,} MB, {before:,} MB of them before the first setting")


if __name__ == "__main__":
    main()
