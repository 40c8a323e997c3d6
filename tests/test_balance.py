"""Balance: whole steps of near-equal cost, nothing lost, no limit broken, and the figures those of plain loops."""

import statistics
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing_oracles import assert_valid

from patchpack.pipeline.packing import Packing, pack
from patchpack.pipeline.packing.balance import swap
from patchpack.pipeline.packing.balance.balance import Balanced, Steps, _cut, balance, in_steps, random_ratio
from patchpack.pipeline.packing.balance.swap import Bins, Repair, attention_costs

cost_lists = st.lists(st.integers(1, 10**12), max_size=40)


def slow_costs(lengths: list[int], bin_index: list[int]) -> list[int]:
    """Returns the sum of n^2 of each bin."""
    costs: Counter[int] = Counter()
    for length, number in zip(lengths, bin_index, strict=True):
        costs[number] += length * length
    return [costs[number] for number in range(len(costs))]


def slow_ratios(costs: list[int], size: int) -> list[float]:
    """Returns maximum / mean of each whole run of `size` costs."""
    runs = [costs[start : start + size] for start in range(0, len(costs) - size + 1, size)]
    return [max(run) / statistics.fmean(run) for run in runs]


def found_ratios(lengths: Any, balanced: Balanced, size: int) -> list[float]:
    """Returns what the steps of a balanced packing come to."""
    costs = slow_costs(list(map(int, lengths)), balanced.bin_index.tolist())
    return slow_ratios([costs[number] for number in balanced.order.tolist()], size)


@settings(max_examples=150, deadline=None)
@given(costs=cost_lists, size=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_order_has_every_bin_once_and_is_a_function_of_its_arguments(costs: list[int], size: int, seed: int) -> None:
    order = in_steps(costs, size, seed=seed)
    assert sorted(order.tolist()) == list(range(len(costs)))
    assert np.array_equal(order, in_steps(costs, size, seed=seed))


@settings(max_examples=150, deadline=None)
@given(costs=st.lists(st.integers(1, 30), min_size=2, max_size=11), size=st.integers(1, 4))
def test_groups_are_the_best_runs_of_the_sorted_bins(costs: list[int], size: int) -> None:
    order = in_steps(costs, size)
    num_steps, num_rest = divmod(len(costs), size)
    found = [sorted(costs[n] for n in order[g * size : (g + 1) * size].tolist()) for g in range(num_steps)]
    ordered = sorted(costs)

    def excess(runs: list[list[int]]) -> int:
        return sum(
            max(1, max(run) * size * 1000 // sum(run) - 1020) for run in runs if max(run) * size * 50 > sum(run) * 51
        )

    # every way to leave some out before each run
    best = None
    for skips in product(range(num_rest + 1), repeat=num_steps):
        if sum(skips) <= num_rest:
            starts = [size * g + sum(skips[: g + 1]) for g in range(num_steps)]
            now = excess([ordered[start : start + size] for start in starts])
            best = now if best is None else min(best, now)
    assert excess(found) == (best or 0)


def test_seeds_change_the_order_of_groups_and_inside_them() -> None:
    costs = [1000 + 10 * n for n in range(40)]
    orders = [in_steps(costs, 8, seed=seed) for seed in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    members = [{frozenset(order[g : g + 8].tolist()) for g in range(0, 40, 8)} for order in orders]
    assert all(found == members[0] for found in members), "which bins go together depends on costs alone"
    assert len({tuple(min(order[g : g + 8].tolist()) for g in range(0, 40, 8)) for order in orders}) > 1
    assert any(order[g : g + 8].tolist() != sorted(order[g : g + 8].tolist()) for order in orders for g in (0, 8))


@st.composite
def packings(draw: Any) -> tuple[list[int], int, int | None, Packing]:
    """Draws lengths, a capacity, a limit and a packing of them."""
    capacity = draw(st.integers(4, 60))
    lengths = draw(st.lists(st.integers(1, draw(st.integers(capacity // 4, capacity))), min_size=1, max_size=90))
    limit = draw(st.none() | st.integers(1, 9))
    return lengths, capacity, limit, pack(lengths, capacity, max_segments=limit, method="best-fit")


@settings(max_examples=120, deadline=None)
@given(question=packings(), size=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_bin_stays_sound_and_their_number_the_same(
    question: tuple[list[int], int, int | None, Packing], size: int, seed: int
) -> None:
    lengths, capacity, limit, packing = question
    given_index = packing.bin_index.copy()
    balanced = balance(lengths, packing.bin_index, capacity, size, max_segments=limit, seed=seed)
    assert np.array_equal(packing.bin_index, given_index), "the argument is left alone"
    after = Packing(balanced.bin_index, packing.num_bins, 0)
    assert_valid([(length,) for length in lengths], [capacity], limit, after)
    assert sorted(balanced.order.tolist()) == list(range(packing.num_bins))
    again = balance(lengths, packing.bin_index, capacity, size, max_segments=limit, seed=seed)
    assert np.array_equal(again.bin_index, balanced.bin_index) and np.array_equal(again.order, balanced.order)


@settings(max_examples=60, deadline=None)
@given(question=packings(), size=st.integers(2, 9))
def test_exchanges_never_make_it_worse(question: tuple[list[int], int, int | None, Packing], size: int) -> None:
    lengths, capacity, limit, packing = question
    costs = slow_costs(lengths, packing.bin_index.tolist())
    before = slow_ratios([costs[number] for number in in_steps(costs, size).tolist()], size)
    after = found_ratios(lengths, balance(lengths, packing.bin_index, capacity, size, max_segments=limit), size)
    # counted in thousandths, rounded down: each run may be reported up to one better than it is
    slack = 0.001 * (len(before) + 1)
    assert sum(max(0.0, r - 1.02) for r in after) <= sum(max(0.0, r - 1.02) for r in before) + slack


@pytest.mark.parametrize("max_segments", [None, 40])
def test_bins_of_many_examples_are_within_the_limit_in_every_step(max_segments: int | None) -> None:
    capacity = 1024
    # sides of 64 to 256 pixels in patches of 16, as the pipeline draws them
    sides = 64 + (np.random.Philox(key=3).random_raw(9000) % np.uint64(193)).astype(np.int64)
    lengths = sides * sides // 256
    packing = pack(lengths, capacity, max_segments=max_segments)
    costs = slow_costs(lengths.tolist(), packing.bin_index.tolist())
    sorted_only = slow_ratios(sorted(costs), 32)
    balanced = balance(lengths, packing.bin_index, capacity, 32, max_segments=max_segments)
    ratios = found_ratios(lengths, balanced, 32)
    assert max(sorted_only) > 1.02
    assert max(ratios) <= 1.02 and len(ratios) == packing.num_bins // 32


@pytest.mark.parametrize("limit", [3, 6, 20])
def test_no_exchange_breaks_a_binding_limit(limit: int) -> None:
    words = np.random.Philox(key=limit).random_raw(1500)
    lengths = 1 + (words % np.uint64(60)).astype(np.int64) ** 2 // 40
    packing = pack(lengths, 128, max_segments=limit, method="best-fit")
    balanced = balance(lengths, packing.bin_index, 128, 16, max_segments=limit)
    assert not np.array_equal(balanced.bin_index, packing.bin_index)
    after = Packing(balanced.bin_index, packing.num_bins, 0)
    assert_valid([(length,) for length in lengths.tolist()], [128], limit, after)


def test_other_groups_give_and_take_only_what_they_can_spare() -> None:
    lengths = 1 + (np.random.Philox(key=8).random_raw(3000) % np.uint64(100)).astype(np.int64)
    packing = pack(lengths, 256, method="best-fit")
    bins = Bins(lengths, packing.bin_index, 256, 3000, 0)
    groups_GW = np.argsort(bins.costs, kind="stable")[: packing.num_bins // 4 * 4].reshape(-1, 4)
    before = slow_ratios(bins.costs[groups_GW].ravel().tolist(), 4)
    Repair(bins, groups_GW, 0).run()
    after = slow_ratios(bins.costs[groups_GW].ravel().tolist(), 4)
    assert bins.costs.tolist() == slow_costs(lengths.tolist(), bins.bin_index.tolist())
    assert sum(ratio > 1.02 for ratio in before) > sum(ratio > 1.02 for ratio in after)
    assert all(new <= 1.02 for new, old in zip(after, before, strict=True) if old <= 1.02)
    assert sum(new != old for new, old in zip(after, before, strict=True) if old <= 1.02) > 1, "others took part"


def test_what_came_out_worse_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoil(Repair):
        def run(self) -> None:
            self.bins.swap(0, self.bins.members[0][:1], 1, self.bins.members[1][:0])

    monkeypatch.setattr("patchpack.pipeline.packing.balance.balance.Repair", Spoil)
    balanced = balance([5, 5, 1, 1, 4, 4], np.array([1, 1, 0, 0, 2, 2]), 12, 3)
    assert balanced.bin_index.tolist() == [1, 1, 0, 0, 2, 2]


def test_work_is_bounded_where_nothing_helps() -> None:
    # one example a bin: nothing can be swapped
    lengths = list(range(51, 101))
    balanced = balance(lengths, np.arange(50), 100, 10)
    assert balanced.bin_index.tolist() == list(range(50))
    assert max(found_ratios(lengths, balanced, 10)) > 1.02


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5)), max_size=30))
def test_attention_cost_is_the_sum_of_squares(examples: list[tuple[int, int]]) -> None:
    lengths, bin_index = [length for length, _ in examples], [number for _, number in examples]
    expected = [sum(n * n for n, own in examples if own == number) for number in range(max(bin_index, default=-1) + 1)]
    assert attention_costs(lengths, np.array(bin_index, dtype=np.int64)).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(shards=st.lists(st.lists(st.integers(0, 500), max_size=20), max_size=5), size=st.integers(1, 6))
def test_steps_are_those_of_plain_loops(shards: list[list[int]], size: int) -> None:
    steps = Steps(size)
    ratios: list[float] = []
    for costs in shards:
        steps.add(costs)
        for start in range(0, len(costs) - size + 1, size):
            run = costs[start : start + size]
            ratios.append(max(run) * size / sum(run) if any(run) else 1.0)
    assert steps.num_steps == len(ratios)
    assert steps.ratio_sum == pytest.approx(sum(ratios)) and steps.worst == max(ratios, default=0.0)
    assert steps.num_within == sum(ratio <= 1.02 for ratio in ratios)


@settings(max_examples=40, deadline=None)
@given(costs=st.lists(st.integers(0, 9), min_size=1, max_size=5), size=st.integers(1, 4))
def test_a_random_step_is_the_mean_over_all_draws(costs: list[int], size: int) -> None:
    if not any(costs):
        assert random_ratio(Counter(costs), size) is None
        return
    most = statistics.fmean(max(drawn) for drawn in product(costs, repeat=size))
    assert random_ratio(Counter(costs), size) == pytest.approx(most / statistics.fmean(costs))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 0}, "size: 0; a step holds at least 1 bin"),
        ({"size": 1.5}, "size: 1.5"),
        ({"lengths": [[1, 2], [3, 4], [1, 1]], "capacity": [9, 9]}, "lengths: 2 resources"),
        ({"lengths": [5, 6, 11]}, r"lengths\[2\]: 11"),
        ({"bin_index": np.array([0, 0])}, r"bin_index: shape \(2,\)"),
        ({"bin_index": np.array([0, 0, 0])}, "bin 0: 18; the capacity is 10"),
        ({"bin_index": np.array([0, 2, 2])}, "bin 1: empty"),
        ({"lengths": [1, 1, 1], "bin_index": np.array([0, 0, 0]), "max_segments": 2}, "bin 0: 3 examples"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"lengths": [5, 6, 7], "bin_index": np.arange(3), "capacity": 10, "size": 2} | change
    with pytest.raises(ValueError, match=words):
        balance(**arguments)


def test_no_bins_and_fewer_than_a_group_are_in_no_group() -> None:
    assert balance([], np.array([], dtype=np.int64), 10, 4).order.tolist() == []
    assert sorted(balance([3, 4], np.arange(2), 10, 4).order.tolist()) == [0, 1]
    assert in_steps([], 3).tolist() == []


def test_a_swap_that_saves_nothing_is_refused() -> None:
    # all that two bins of one example each can do is change places
    bins = swap.Bins(np.array([5, 3]), np.array([0, 1]), 5, 2, 0)
    repair = swap.Repair(bins, np.array([[0, 1]]), 0)
    assert not repair._even_out(0, 1)
    assert bins.bin_index.tolist() == [0, 1]


def test_of_equally_even_cuts_the_one_of_least_idle_time_is_taken() -> None:
    costs = np.array([10_000] * 4 + [10_100] * 3)
    groups_GW, rest = _cut(costs, 3)
    # whichever is left out, every group is within 2 %; leaving out a cheap one makes all steps even
    assert sorted(costs[groups_GW].tolist()) == [[10_000] * 3, [10_100] * 3]
    assert costs[rest].tolist() == [10_000]
