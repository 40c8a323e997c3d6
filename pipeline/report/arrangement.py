"""How examples and sequences are arranged: how evenly steps cost, and how well sequences are mixed.

Fed a shard at a time, stored or only planned. The steps of a dataset built with --balance-step are its own, cut as the loader
cuts them. The listing is that of one group of inputs, by key: groups are drawn by a hash of the key, so a place
in it stands for the place among all inputs. Memory: names and lengths of one group's examples, and counts of costs in
steps of a millionth of full attention.
"""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.packing.balance.balance import Steps, random_ratio
from patchpack.pipeline.packing.balance.mixing import Mixing
from patchpack.pipeline.packing.balance.swap import attention_costs
from patchpack.pipeline.report.statistics import add_unique
from patchpack.schemas.report import Arranged, StepBalance
from patchpack.schemas.report import Mixing as Mixed

# what is reported of a dataset without --balance-step: how far steps of so many sequences would be apart
BASELINE_STEP = 64
# a machine, a rack, a small cluster
RANKS = (8, 64, 256)
COST_STEPS = 1_000_000

Listing = tuple[int, int, int]


class Arrangement:
    """Figures over the shards seen so far."""

    def __init__(self, balance_step: int | None) -> None:
        """Starts without any shard; `balance_step` is the manifest's."""
        self._balance_step = balance_step
        self._steps = Steps(balance_step or BASELINE_STEP)
        self._costs: Counter[int] = Counter()
        self._mixing = Mixing()
        self._num_sequences = 0
        self._listing: Listing | None = None
        self._pending: list[tuple[np.ndarray, np.ndarray, pa.Table]] = []

    def add_shard(
        self,
        listing: Listing,
        lengths_M: np.ndarray,
        rows_M: np.ndarray,
        names: pa.Table,
        num_rows: int,
        sequence_length: int,
    ) -> None:
        """Adds the sequences of a shard.

        Args:
            listing: (group, view, layout) of the shard; shards of one stand together.
            lengths_M: tokens of each example.
            rows_M: the sequence of each example, from 0 in this shard.
            names: key and example id of each example.
            num_rows: sequences, empty ones too.
            sequence_length: tokens of each.
        """
        # an example of no tokens stands for the last rows, if those are empty
        costs_R = attention_costs(np.append(lengths_M, 0), np.append(rows_M, num_rows - 1)) if num_rows else lengths_M
        if self._balance_step:
            self._steps.add(costs_R)
        full = sequence_length**2
        add_unique(self._costs, (costs_R * COST_STEPS + full // 2) // full)
        if listing != self._listing:
            self._end_listing()
        self._listing = listing
        self._pending.append((lengths_M, rows_M + self._num_sequences, names))
        self._num_sequences += num_rows

    def merge(self, other: "Arrangement") -> None:
        """Adds the shards of another, which are of other groups; both are ended by it."""
        self.end()
        other.end()
        self._steps.merge(other._steps)
        self._costs.update(other._costs)
        self._mixing.merge(other._mixing)

    def end(self) -> None:
        """Counts what waits for more shards of its group: there are none."""
        self._end_listing()
        self._listing = None

    def figures(self) -> Arranged:
        """Returns `step_balance` and `mixing` as the report has them."""
        self.end()
        steps = self._steps
        balance: StepBalance = {
            "balance_step": self._balance_step,
            "num_sequences": steps.size,
            "random_max_over_mean": random_ratio(self._costs, steps.size),
            "random_by_ranks": {str(ranks): random_ratio(self._costs, ranks) for ranks in RANKS},
            "num_steps": steps.num_steps,
            "mean_max_over_mean": None,
            "worst_max_over_mean": None,
            "fraction_within_limit": None,
        }
        if steps.num_steps:
            balance["mean_max_over_mean"] = float(steps.ratio_sum / steps.num_steps)
            balance["worst_max_over_mean"] = steps.worst
            balance["fraction_within_limit"] = steps.num_within / steps.num_steps
        span, random_span = self._mixing.source_span() or (None, None)
        mixing: Mixed = {
            "length_correlation": self._mixing.length_correlation(),
            "source_span": span,
            "random_source_span": random_span,
        }
        return {"step_balance": balance, "mixing": mixing}

    def _end_listing(self) -> None:
        if not self._pending:
            return
        lengths, rows, names = zip(*self._pending, strict=True)
        self._pending = []
        listed = pa.concat_tables(names)
        order = pc.sort_indices(listed, [(name, "ascending") for name in listed.column_names]).to_numpy()
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        self._mixing.add(np.concatenate(lengths), np.concatenate(rows), ranks)
