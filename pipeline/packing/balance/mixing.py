"""How well a packing mixes its examples: over lengths, and over the order they were listed in.

Packers like to put equal lengths into one bin, and inputs are listed folder by folder; a batch of sequences whose
examples are alike is a smaller sample than it seems. Two figures say how alike: the intraclass correlation of
lengths, and how far apart in the listing the examples of one bin stand. Sums are exact, so that equal packings have equal
figures, in whatever order their parts are added. Costs a sort of the bin numbers; keeps no single examples.
"""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt


@dataclass
class Mixing:
    """Sums over the bins seen so far.

    Attributes:
        num_bins: bins of each number of examples.
        squares: sum of the squared lengths.
        totals: sum of the lengths of all examples in bins of each number of examples.
        squared_totals: sum of the squared tokens of such bins.
        span: sum over bins of two and more examples of the share of the listing between the first and the last.
        random_span: what it would be if examples were dealt to bins at random.
    """

    num_bins: Counter[int] = field(default_factory=Counter)
    squares: int = 0
    totals: Counter[int] = field(default_factory=Counter)
    squared_totals: Counter[int] = field(default_factory=Counter)
    span: Fraction = Fraction(0)
    random_span: Fraction = Fraction(0)

    def add(self, lengths: npt.ArrayLike, bin_index: npt.ArrayLike, ranks: npt.ArrayLike) -> None:
        """Adds the bins of one listing; every bin is whole.

        Args:
            lengths: (M,) integers, tokens of each example.
            bin_index: (M,) integers, the bin of each example; which numbers they have does not matter.
            ranks: (M,) integers, place of each example in the listing, 0 to M - 1, none twice.
        """
        lengths_M, ranks_M = np.asarray(lengths, dtype=np.int64), np.asarray(ranks, dtype=np.int64)
        order = np.argsort(bin_index, kind="stable")
        starts_B = np.unique(np.asarray(bin_index)[order], return_index=True)[1]
        if not len(starts_B):
            return
        counts_B = np.diff(np.append(starts_B, len(order)))
        totals_B = np.add.reduceat(lengths_M[order], starts_B)
        spans_B = np.maximum.reduceat(ranks_M[order], starts_B) - np.minimum.reduceat(ranks_M[order], starts_B)
        self.squares += int((lengths_M**2).sum())
        for count in np.unique(counts_B).tolist():
            of_count = counts_B == count
            number = int(of_count.sum())
            self.num_bins[count] += number
            self.totals[count] += int(totals_B[of_count].sum())
            self.squared_totals[count] += int((totals_B[of_count] ** 2).sum())
            if count > 1:
                last = len(order) - 1
                self.span += Fraction(int(spans_B[of_count].sum()) / last)
                # k of M ranks drawn at random lie (M + 1) (k - 1) / (k + 1) apart
                self.random_span += Fraction(number * (len(order) + 1) * (count - 1) / ((count + 1) * last))

    def merge(self, other: "Mixing") -> None:
        """Adds the bins of another, which are of other listings."""
        self.num_bins.update(other.num_bins)
        self.squares += other.squares
        self.totals.update(other.totals)
        self.squared_totals.update(other.squared_totals)
        self.span += other.span
        self.random_span += other.random_span

    def length_correlation(self) -> float | None:
        """Returns the intraclass correlation of lengths, ICC(1): 0 as at random, 1 where each bin holds one length.

        Below 0: examples of one bin differ more than at random. None where there is nothing to compare: one bin,
        one example in each, or one length only.
        """
        bins = sum(self.num_bins.values())
        examples = sum(count * number for count, number in self.num_bins.items())
        if bins < 2 or examples == bins:
            return None
        by_bin = sum(Fraction(squared, count) for count, squared in self.squared_totals.items())
        between = (by_bin - Fraction(sum(self.totals.values()) ** 2, examples)) / (bins - 1)
        within = (self.squares - by_bin) / (examples - bins)
        # the size of a bin that stands for bins of several sizes
        sizes = Fraction(sum(count**2 * number for count, number in self.num_bins.items()), examples)
        usual = (examples - sizes) / (bins - 1)
        spread = between + (usual - 1) * within
        return float((between - within) / spread) if spread else None

    def source_span(self) -> tuple[float, float] | None:
        """Returns the mean share of the listing that the examples of a bin span, and what is due at random.

        Over bins of two and more examples; None where there are none.
        """
        bins = sum(number for count, number in self.num_bins.items() if count > 1)
        return (float(self.span / bins), float(self.random_span / bins)) if bins else None
