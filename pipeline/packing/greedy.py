"""Best-fit decreasing: a good packing of any number of examples in milliseconds.

Longest first, each into the fullest open bin that still takes it (Johnson, "Near-optimal bin packing algorithms", MIT
thesis, 1973). One resource: on the histogram (Krell et al., "Efficient sequence packing without cross-contamination",
2021, use one too, but an approximate rule). Bins of equal contents are one group; a length's examples go to the group
with the least sufficient residual, each of its bins taking as many as it can before the next one is touched, which is
what best-fit does with equal lengths one by one. A step closes a length or empties a group: some 3 us each, whatever N;
3,700 lengths take some 30 ms. Contents are shared tails of a tree, read once at the end.

Several resources: longest and fullest are judged by the sum of the relative amounts (Panigrahy et al., "Heuristics for
vector bin packing", Microsoft Research, 2011, section 2), and every open bin is looked at: O(N * bins * R). Gives up
optimality: at most 11/9 of the optimum and a constant for one resource without `max_segments`; where `max_segments`
binds, long examples sit together and the short ones, sharing bins only with each other, run into the limit (10-14 %
more bins): see `fold`.
"""

import bisect
from collections import deque

import numpy as np
import numpy.typing as npt

from patchpack.pipeline.packing.instance import Histogram, Instance
from patchpack.pipeline.packing.slots import Patterns, random_words

# Different examples times examples that `norm_fit_rows` looks at: some seconds.
MAX_LOOKS = 2**31


class _Groups:
    """Groups of bins of equal contents, found by the least sufficient residual.

    Among equal residuals the bins with the fewest examples come first. A group is (node, number of bins); a node
    (parent, kind, copies) is what was put in last, on top of its parent's contents.
    """

    def __init__(self, histogram: Histogram) -> None:
        self.capacity = histogram.capacity
        self.limit = histogram.max_segments
        self.groups: dict[int, deque[tuple[int, int]]] = {}  # by key: residual and segments
        self.keys: list[int] = []  # of the groups, ascending
        self.nodes: list[tuple[int, int, int]] = []
        self.closed: list[tuple[int, int]] = []

    def place(self, kind: int, length: int, left: int) -> None:
        """Puts `left` examples of a length, no longer than all before, each into the fullest bin that takes it."""
        while left:
            parent, num_bins, residual, num_segments = self._take_fullest(length, left)
            copies = min(residual // length, self.limit - num_segments)
            whole = min(num_bins, left // copies)
            left -= whole * copies
            last = left if whole < num_bins else 0  # fewer than `copies`
            for put, bins in ((copies, whole), (last, 1 if last else 0)):
                if bins:
                    self.nodes.append((parent, kind, put))
                    self._put((len(self.nodes) - 1, bins), residual - put * length, num_segments + put)
            left -= last
            if untouched := num_bins - whole - (1 if last else 0):
                self._put((parent, untouched), residual, num_segments)

    def _take_fullest(self, length: int, left: int) -> tuple[int, int, int, int]:
        """Returns (node, number of bins, residual, segments) of the fullest group that takes a length, or of new bins."""
        at = bisect.bisect_left(self.keys, length * (self.limit + 1))
        if at == len(self.keys):
            copies = min(self.capacity // length, self.limit)
            return -1, -(-left // copies), self.capacity, 0
        key = self.keys[at]
        node, num_bins = self.groups[key].popleft()
        if not self.groups[key]:
            del self.groups[key], self.keys[at]
        return node, num_bins, *divmod(key, self.limit + 1)

    def _put(self, group: tuple[int, int], residual: int, num_segments: int) -> None:
        """Adds a group; one that takes no more is put out of reach."""
        if residual == 0 or num_segments == self.limit:
            self.closed.append(group)
            return
        key = residual * (self.limit + 1) + num_segments
        if key not in self.groups:
            self.groups[key] = deque()
            bisect.insort(self.keys, key)
        self.groups[key].append(group)

    def patterns(self) -> Patterns:
        """Returns the groups as patterns, reading all contents a level of the tree at a time."""
        leaves = self.closed + [group for groups in self.groups.values() for group in groups]
        node_M, repeats_M = np.array(leaves, dtype=np.int64).reshape(-1, 2).T
        parent, kind, copies = np.array(self.nodes, dtype=np.int64).reshape(-1, 3).T
        length_classes, pattern = [], []
        at_M, of_M = node_M, np.arange(len(leaves))
        while len(at_M):
            length_classes.append(np.repeat(kind[at_M], copies[at_M]))
            pattern.append(np.repeat(of_M, copies[at_M]))
            up_M = parent[at_M]
            at_M, of_M = up_M[up_M >= 0], of_M[up_M >= 0]
        empty = np.zeros(0, dtype=np.int64)
        return Patterns(np.concatenate([empty, *length_classes]), np.concatenate([empty, *pattern]), repeats_M.copy())


def best_fit(histogram: Histogram) -> Patterns:
    """Returns best-fit decreasing's packing."""
    groups = _Groups(histogram)
    length_classes = range(len(histogram.values) - 1, -1, -1)
    for kind, length, count in zip(
        length_classes, histogram.values[::-1].tolist(), histogram.counts[::-1].tolist(), strict=True
    ):
        groups.place(kind, length, count)
    return groups.patterns()


def fold(histogram: Histogram, num_bins: int) -> Patterns | None:
    """Returns a packing into `num_bins` bins of near-equal loads and numbers of examples, or None where this way fails.

    For where `max_segments` binds, so that bins must run out of tokens and slots together: the longest examples open the
    bins; then, round by round, each bin gets one more, the least loaded the longest ("folding" the sorted lengths: Babel,
    Kellerer and Kotov, "The k-partitioning problem", Mathematical Methods of Operations Research 47, 1998). What does
    not fit where it falls waits for the next round. At most `2 * max_segments + 32` rounds, each a stable sort of the loads.
    """
    classes_N = np.repeat(np.arange(len(histogram.values))[::-1], histogram.counts[::-1])
    if not num_bins <= len(classes_N) <= num_bins * histogram.max_segments:
        return None
    loads_B, segments_B = np.zeros((2, num_bins), dtype=np.int64)
    waiting = classes_N[:0]
    done, placed_classes, placed_bins = 0, [], []
    for _ in range(2 * histogram.max_segments + 32):
        open_bins = np.flatnonzero(segments_B < histogram.max_segments)
        lightest = open_bins[np.argsort(loads_B[open_bins], kind="stable")]
        fresh = classes_N[done : done + max(0, len(lightest) - len(waiting))]
        done += len(fresh)
        batch = np.concatenate([waiting, fresh])
        lightest = lightest[: len(batch)]
        fits = loads_B[lightest] + histogram.values[batch[: len(lightest)]] <= histogram.capacity
        chosen = lightest[fits]
        placed_classes.append(batch[: len(lightest)][fits])
        placed_bins.append(chosen)
        loads_B[chosen] += histogram.values[placed_classes[-1]]
        segments_B[chosen] += 1
        waiting = np.concatenate([batch[: len(lightest)][~fits], batch[len(lightest) :]])
        if not len(waiting) and done == len(classes_N):
            return Patterns(
                np.concatenate(placed_classes), np.concatenate(placed_bins), np.ones(num_bins, dtype=np.int64)
            )
        if not len(chosen):
            return None
    return None


def best_fit_rows(instance: Instance, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the bin of each example, (N,) int64, for any number of resources; examples come in `order`."""
    lengths_NR, capacity = instance.lengths.astype(np.int64), instance.capacity
    bin_index = np.empty(instance.num_examples, dtype=np.int64)
    residuals = np.tile(capacity, (instance.num_examples, 1))  # (bins, R); bins not opened at the end
    num_segments = np.zeros(instance.num_examples, dtype=np.int64)
    num_bins = 0
    for example in order.tolist():
        sufficient = np.flatnonzero((residuals[:num_bins] >= lengths_NR[example]).all(axis=1))
        if len(sufficient):
            # Every candidate gets the same example, so the least residual now is the least after.
            chosen = sufficient[np.argmin(relative_size(residuals[sufficient], capacity))]
        else:
            chosen = num_bins
            num_bins += 1
        bin_index[example] = chosen
        num_segments[chosen] += 1
        residuals[chosen] -= lengths_NR[example]
        if num_segments[chosen] == instance.max_segments:
            residuals[chosen] = -1  # closed: below every length
    return bin_index


def norm_fit_rows(instance: Instance, seed: int, *, largest: bool) -> npt.NDArray[np.int64] | None:
    """Returns the bin of each example, (N,) int64, for any number of resources; None where that would take too long.

    A bin at a time: of what fits, the example after which the rest of the bin is the smallest, so that no resource runs out long
    before the others (norm-based greedy, Panigrahy et al., section 3). O(N * K * R) for K different examples.

    Args:
        instance: the question.
        seed: of which of equal examples goes where.
        largest: whether a rest is as large as its largest relative amount, otherwise as the sum of their squares. Over the sum
            of what is used: 0.8 to 1.1 % and 0.8 to 3.8 % for tokens with text, 0.8 and 2.8 % with tiles; in order of size 8.
    """
    rows_KR, row_of, counts_K = np.unique(instance.lengths, axis=0, return_inverse=True, return_counts=True)
    if len(rows_KR) * instance.num_examples > MAX_LOOKS:
        return None
    rows_KR = rows_KR.astype(np.int64)
    # units of 2**-20: their squares, summed over some thousand resources, stay inside int64
    shares_KR = (rows_KR << 20) // instance.capacity
    left_K, alive = counts_K.copy(), np.arange(len(rows_KR))
    kinds, bins = [], 0
    bin_of: list[int] = []
    while len(alive):
        residual, rest = instance.capacity.copy(), np.full(instance.num_resources, 1 << 20, dtype=np.int64)
        for _ in range(instance.max_segments):
            fitting = alive[(rows_KR[alive] <= residual).all(axis=1) & (left_K[alive] > 0)]
            if not len(fitting):
                break
            rests = rest - shares_KR[fitting]
            chosen = int(fitting[np.argmin(rests.max(axis=1) if largest else np.square(rests).sum(axis=1))])
            kinds.append(chosen)
            bin_of.append(bins)
            left_K[chosen] -= 1
            residual, rest = residual - rows_KR[chosen], rest - shares_KR[chosen]
        bins += 1
        alive = alive[left_K[alive] > 0]
    # which of equal examples goes where is a seeded shuffle
    examples = np.lexsort((random_words(seed, 4, instance.num_examples), row_of.reshape(-1)))
    bin_index = np.empty(instance.num_examples, dtype=np.int64)
    bin_index[examples] = np.array(bin_of, dtype=np.int64)[np.argsort(kinds, kind="stable")]
    return bin_index


def decreasing_orders(instance: Instance, seed: int) -> list[npt.NDArray[np.int64]]:
    """Returns orders to pack in: by the sum of relative amounts, by the largest of them, by each resource.

    Examples of equal size come in a seeded shuffle.
    """
    shares_NR = relative_shares(instance.lengths.astype(np.int64), instance.capacity)
    words_N = random_words(seed, 2, instance.num_examples)
    sizes = [shares_NR.sum(axis=1), shares_NR.max(axis=1), *shares_NR.T]
    return [np.lexsort((words_N, -size_N)) for size_N in sizes]


def relative_shares(amounts_KR: npt.NDArray[np.int64], capacity: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns amount / capacity, (K, R) int64, in units of 2**-31, rounded down.

    Integers, so that every processor ranks alike; and as no capacity exceeds 2**31, one more of a resource is always a
    larger share.
    """
    return (amounts_KR << 31) // capacity


def relative_size(amounts_KR: npt.NDArray[np.int64], capacity: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the sum over resources of amount / capacity, (K,) int64, in units of 2**-31."""
    shares_K: npt.NDArray[np.int64] = relative_shares(amounts_KR, capacity).sum(axis=1)
    return shares_K
