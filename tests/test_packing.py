"""Packing: nothing lost, nothing over a limit, never beaten by brute force, the same every time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing_oracles import assert_valid, fewest_bins, fewest_bins_by_cp_sat, questions

from patchpack.pipeline.packing import Packing, bound_of_histogram, check_certificate, check_packing, pack
from patchpack.pipeline.packing.balance.mixing import Mixing
from patchpack.pipeline.packing.instance import MAX_CAPACITY

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = ROOT.parent / "shared" / "lengths"
METHODS = ("auto", "best-fit")

# Best-fit decreasing opens 3 bins: 4+4, 3+3+3 and 3. Two are enough: 4+3+3 twice.
GREEDY_FAILS = ([4, 3, 3, 4, 3, 3], 10)
# The sum (21 of 8) and L2 say 3, but no bin holds three of them: 4.
SUM_FAILS = ([3] * 7, 8)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(question=questions(max_size=40, max_capacity=60, max_resources=3), seed=st.integers(0, 2**70))
def test_every_example_lands_exactly_once_and_no_limit_is_broken(method: str, question: Any, seed: int) -> None:
    rows, capacity, max_segments = question
    packing = pack(rows, capacity, max_segments=max_segments, seed=seed, effort=0.01, method=method)
    assert_valid(rows, capacity, max_segments, packing)
    check_packing(rows, capacity, packing, max_segments)


@pytest.mark.parametrize("num_resources", [1, 2])
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_the_bound_is_never_above_the_brute_force_optimum(num_resources: int, data: st.DataObject) -> None:
    rows, capacity, max_segments = data.draw(
        questions(max_size=9, min_resources=num_resources, max_resources=num_resources)
    )
    optimum = fewest_bins(rows, capacity, max_segments)
    for method in METHODS:
        packing = pack(rows, capacity, max_segments=max_segments, method=method)
        assert_valid(rows, capacity, max_segments, packing)
        check_certificate(rows, capacity, packing, max_segments)
        assert 1 <= packing.bound <= optimum <= packing.num_bins
        assert packing.proven_optimal == (packing.bound == packing.num_bins)


@settings(deadline=None, max_examples=150)
@given(question=questions(max_size=9, max_capacity=30))
def test_small_packings_reach_the_brute_force_optimum(question: Any) -> None:
    rows, capacity, max_segments = question
    packing = pack(rows, capacity, max_segments=max_segments)
    assert_valid(rows, capacity, max_segments, packing)
    assert packing.num_bins == fewest_bins(rows, capacity, max_segments)


@pytest.mark.parametrize("seed", range(20))
def test_an_independent_solver_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(20, 200))
    lengths = rng.integers(max(1, capacity // 8), capacity // 2 + 1, 14).tolist()
    max_segments = int(rng.integers(2, 5)) if seed % 2 else None
    packing = pack(lengths, capacity, max_segments=max_segments)
    check_packing(lengths, capacity, packing, max_segments)
    assert packing.num_bins == fewest_bins_by_cp_sat(lengths, capacity, max_segments, packing.num_bins)


def test_what_greedy_misses_is_found_and_what_the_sum_misses_is_proven() -> None:
    greedy = pack(*GREEDY_FAILS, method="best-fit")
    assert (greedy.num_bins, greedy.bound, greedy.proven_optimal) == (3, 2, False)
    lengths, capacity = SUM_FAILS
    greedy = pack(lengths, capacity, method="best-fit")
    assert (greedy.num_bins, greedy.bound, greedy.proven_optimal) == (4, 3, False)
    for question, optimum in ((GREEDY_FAILS, 2), (SUM_FAILS, 4)):
        packing = pack(*question)
        check_packing(*question, packing)
        check_certificate(*question, packing)
        assert (packing.num_bins, packing.bound, packing.proven_optimal) == (optimum, optimum, True)


def test_without_work_left_the_best_so_far_comes_back_and_nothing_unproven() -> None:
    # Triplets that fill a bin exactly: the optimum is known, and far from what best-fit finds.
    rng = np.random.default_rng(5)
    first, second = rng.integers(380, 490, 20), rng.integers(250, 255, 20)
    lengths = np.concatenate([first, second, 1000 - first - second])
    greedy = pack(lengths, 1000, method="best-fit")
    assert greedy.bound < greedy.num_bins
    packing = pack(lengths, 1000, effort=1e-9)
    check_packing(lengths, 1000, packing)
    assert packing.bound <= 20 <= packing.num_bins <= greedy.num_bins


def test_exact_returns_a_proven_optimum_or_an_error() -> None:
    assert pack(*SUM_FAILS, method="exact").proven_optimal
    # No two of these share a bin, which neither resource's bound sees.
    with pytest.raises(ValueError) as caught:
        pack([(3, 2), (2, 2), (1, 3)], (4, 4), method="exact", effort=0.5)
    assert str(caught.value) == (
        "method 'exact': 3 bins against a bound of 2 at effort 0.5; it returns proven optima only;"
        " raise the effort or use method 'auto'"
    )


def test_two_resources_share_a_bin_and_the_second_may_be_zero() -> None:
    # Images use no text tokens. By either resource alone two bins are enough; together they need three.
    lengths = np.array([(3, 2), (2, 2), (1, 3), (1, 0)])
    packing = pack(lengths, (4, 4))
    check_packing(lengths, (4, 4), packing)
    check_certificate(lengths, (4, 4), packing)
    assert (packing.num_bins, packing.bound) == (3, 2)
    assert [pack(column[column > 0], 4).num_bins for column in lengths.T] == [2, 2]
    # The bound is that of the resource that runs out first, and so is its certificate.
    packing = pack([(1, 6), (1, 6), (1, 6), (1, 0)], (10, 10))
    assert packing.certificate is not None
    assert (packing.num_bins, packing.bound, packing.certificate.resource) == (3, 3, 1)


def test_the_bound_of_merged_histograms_is_that_of_all_examples() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(60, 400, 3000)
    values, counts = np.unique(lengths, return_counts=True)
    order = rng.permutation(len(values))
    merged = bound_of_histogram(values[order], counts[order], 1000, 5)
    assert merged.bound == pack(lengths, 1000, max_segments=5).bound
    check_certificate(lengths, 1000, merged, 5)
    assert bound_of_histogram([], [], 10).bound == 0
    assert bound_of_histogram([3, 4], [0, 2], 10).bound == 1
    for values_, counts_, message in (
        ([3, 3], [1, 1], "values: 3 stands there twice; add up its counts"),
        ([3], [-1], "counts[0]: -1; the least is 0; leave the length out"),
        ([3], [1.0], "counts: dtype float64; counts are integers; convert them first"),
        ([3], [1, 2], "counts: shape (2,); it is (1,); give one for each length"),
    ):
        with pytest.raises(ValueError) as caught:
            bound_of_histogram(values_, counts_, 10)
        assert str(caught.value) == message


def test_published_optima_are_reached() -> None:
    for name, capacity, optimum in (("wikipedia_512", 512, 8_135_727), ("squad_384", 384, 40_195)):
        path = LENGTHS / f"{name}_histogram.npy"
        if not path.exists():
            pytest.skip(f"{path} is not there")
        counts = np.load(path)
        lengths = np.repeat(np.arange(1, capacity + 1, dtype=np.uint16), counts)
        packing = pack(lengths, capacity)
        check_packing(lengths, capacity, packing)
        check_certificate(lengths, capacity, packing)
        assert (packing.num_bins, packing.bound) == (optimum, optimum)


def test_a_packing_that_is_open_says_why() -> None:
    lengths = [6, 5, 5, 4, 4, 3, 3]
    assert pack(lengths, 10).proven_optimal and pack(lengths, 10).why_open == ""
    large = 2**20 * np.array(lengths)
    assert pack([3, 3, 2, 2, 2], 6, method="best-fit").why_open == ""
    open_bins = pack(large + 1, 10 * 2**20 + 1)
    assert open_bins.why_open == "" or open_bins.why_open.startswith(
        "capacity 10485761: no solver is asked above 1048576"
    )
    hard = np.random.default_rng(0).integers(2_731, 6_000, 3_000) * 300
    assert pack(hard, 16_384 * 300).why_open.startswith("capacity 4915200: no solver is asked above 1048576")
    assert pack(hard // 300, 16_384, method="best-fit").why_open.startswith("method best-fit: ")
    assert pack(hard // 300, 16_384, effort=1e-9).why_open == "the work allowed by effort 1e-09 is done"


@pytest.mark.parametrize("lengths", [[], np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int32)])
@pytest.mark.parametrize("method", METHODS)
def test_no_examples_need_no_bins(lengths: Any, method: Any) -> None:
    capacity = (5, 5) if np.ndim(lengths) == 2 else 5
    packing = pack(lengths, capacity, max_segments=3, method=method)
    check_packing(lengths, capacity, packing, 3)
    assert packing.bin_index.shape == (0,)
    assert packing.bin_index.dtype == np.int64
    assert (packing.num_bins, packing.bound, packing.proven_optimal) == (0, 0, True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64, np.int32])
def test_every_integer_dtype_packs_alike(dtype: Any) -> None:
    lengths = np.array([30, 30, 60, 100, 100, 127], dtype=dtype)
    two_resources = np.stack([lengths, lengths[::-1]], axis=1)
    for rows, capacity in ((lengths, 130), (two_resources, np.array([130, 250], dtype=np.uint16))):
        expected = pack(rows.tolist(), capacity, method="best-fit")
        packing = pack(rows, capacity, method="best-fit")
        np.testing.assert_array_equal(packing.bin_index, expected.bin_index)
        assert packing.bound == expected.bound


def test_the_largest_capacity_does_not_overflow() -> None:
    lengths = np.full(100, MAX_CAPACITY)
    packing = pack(lengths, MAX_CAPACITY)
    assert (packing.num_bins, packing.bound) == (100, 100)
    packing = pack(np.stack([lengths, lengths], axis=1) // 2, (MAX_CAPACITY, MAX_CAPACITY))
    assert (packing.num_bins, packing.bound) == (50, 50)
    beside_nothing = [(1, 1), (2, 1), (MAX_CAPACITY - 2, 1), (MAX_CAPACITY - 1, 1)]
    packing = pack(beside_nothing, (MAX_CAPACITY, 2), method="best-fit")
    assert packing.bin_index.tolist() in ([0, 1, 1, 0], [1, 0, 0, 1])  # the longest came first
    # Half of the capacity is rounded down: two fit, and a third does not.
    assert pack([MAX_CAPACITY // 2] * 3, MAX_CAPACITY).num_bins == 2
    packing = pack([MAX_CAPACITY - 1, 1, 2, MAX_CAPACITY - 2], MAX_CAPACITY)
    assert packing.bin_index.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_the_caller_s_lengths_are_left_alone() -> None:
    lengths = np.array([4, 3, 3, 4, 3, 3])
    pack(lengths, 10)
    assert lengths.tolist() == [4, 3, 3, 4, 3, 3]


def hard_questions() -> list[tuple[npt.NDArray[np.int64], int]]:
    """Returns questions that reach the solver, some of them past its work limit."""
    rng = np.random.default_rng(7)
    return [(np.array(GREEDY_FAILS[0] * 4), 10)] + [(rng.integers(200, 500, 40), 1000) for _ in range(3)]


PRINT_HARD_ANSWERS = """
import sys
from test_packing import hard_questions
from patchpack.pipeline.packing import pack
print([pack(*question, seed=3, effort=0.05).bin_index.tolist() for question in hard_questions()])
"""


@pytest.mark.slow
def test_the_same_arguments_give_the_same_packing_in_any_thread_or_process() -> None:
    questions_ = hard_questions()
    here = [pack(*question, seed=3, effort=0.05).bin_index.tolist() for question in questions_]
    with ThreadPoolExecutor(4) as pool:
        backwards = pool.map(lambda q: pack(*q, seed=3, effort=0.05).bin_index.tolist(), questions_[::-1])
        assert list(backwards)[::-1] == here
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "tests")}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_HARD_ANSWERS], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(here)


def test_the_order_of_examples_does_not_change_how_many_bins_there_are() -> None:
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 400, 500)
    packings = [pack(rng.permutation(lengths), 1000, max_segments=6) for _ in range(3)]
    assert len({(packing.num_bins, packing.bound) for packing in packings}) == 1


PACK_WITHOUT_A_SOLVER = """
import sys
import numpy as np
from patchpack.pipeline.packing import pack
lengths = np.random.default_rng(0).integers(1, 257, 16384)
print(pack(lengths, 16384, max_segments=200).proven_optimal, pack([4, 3, 3, 4, 3, 3], 10, method="best-fit").proven_optimal)
print([name for name in sys.modules if name.startswith("ortools")])
"""


def test_what_needs_no_solver_imports_none() -> None:
    done = subprocess.run([sys.executable, "-c", PACK_WITHOUT_A_SOLVER], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True False", "[]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lengths": [3, 11, 12]},
            "lengths[1]: 11; the capacity is 10; shrink the example or raise the capacity",
        ),
        ({"lengths": [3, 4, 0]}, "lengths[2]: 0; the least is 1; leave the example out"),
        ({"lengths": [3, -4]}, "lengths[1]: -4; the least is 1; leave the example out"),
        (
            {"lengths": np.array([3, 2**64 - 1], dtype=np.uint64)},
            "lengths[1]: 18446744073709551615; the capacity is 10; shrink the example or raise the capacity",
        ),
        (
            {"lengths": [(3, 5), (3, 6)], "capacity": (10, 5)},
            "lengths[1, 1]: 6; the capacity is 5; shrink the example or raise the capacity",
        ),
        (
            {"lengths": [(3, 5), (3, -1)], "capacity": (10, 5)},
            "lengths[1, 1]: -1; the least is 0; leave the example out",
        ),
        (
            {"lengths": [(3, 5), (0, 3)], "capacity": (10, 5)},
            "lengths[1, 0]: 0; the least is 1; leave the example out",
        ),
        ({"lengths": [3.0, 4.0]}, "lengths: dtype float64; lengths are integers; convert them first"),
        ({"lengths": [True]}, "lengths: dtype bool; lengths are integers; convert them first"),
        (
            {"lengths": [(3, 5)]},
            "lengths: 2 to an example; capacity has 1; give one capacity for each column of lengths",
        ),
        (
            {"lengths": [3, 5], "capacity": (10, 10)},
            "lengths: 1 to an example; capacity has 2; give one capacity for each column of lengths",
        ),
        (
            {"lengths": [[[3]]]},
            "lengths: shape (1, 1, 1); the shape is (N,) or (N, R); give one row for each example",
        ),
        ({"lengths": 3}, "lengths: shape (); the shape is (N,) or (N, R); give one row for each example"),
        ({"capacity": 0}, "capacity: 0; the least is 1; give what one bin holds"),
        ({"capacity": (10, 0)}, "capacity[1]: 0; the least is 1; give what one bin holds"),
        ({"capacity": 10.5}, "capacity: 10.5; it is an integer; round it first"),
        ({"capacity": 2**31}, "capacity: 2147483648; the most is 2147483647; count in a larger unit"),
        (
            {"capacity": ()},
            "capacity: no entries; every resource needs one; give an integer, or one for each column of lengths",
        ),
        ({"max_segments": 0}, "max_segments: 0; the least is 1; leave it out for no limit"),
        ({"max_segments": 2.5}, "max_segments: 2.5; it is an integer; round it first"),
        ({"seed": 0.5}, "seed: 0.5; it is an integer; round it first"),
        ({"method": "fast"}, "method: 'fast'; it is one of auto, best-fit, exact; leave it out for auto"),
        ({"effort": 0}, "effort: 0; it is above 0; leave it out for 1.0"),
        ({"effort": -0.5}, "effort: -0.5; it is above 0; leave it out for 1.0"),
        ({"effort": float("nan")}, "effort: nan; it is above 0; leave it out for 1.0"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule_and_what_to_do(arguments: dict[str, Any], message: str) -> None:
    arguments = {"lengths": [3, 4], "capacity": 10, **arguments}
    with pytest.raises(ValueError) as caught:
        pack(**arguments)
    assert str(caught.value) == message


VALID = Packing(np.array([0, 1, 0, 1]), num_bins=2, bound=2)  # of lengths 4, 5, 6, 5 at capacity 10


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"bin_index": np.array([0, 1, 0])},
            "bin_index: shape (3,), dtype int64; it is (4,), int64; do not use this packing",
        ),
        (
            {"bin_index": np.array([0.0, 1.0, 0.0, 1.0])},
            "bin_index: shape (4,), dtype float64; it is (4,), int64; do not use this packing",
        ),
        ({"bin_index": np.array([0, 1, 0, -1])}, "bin_index[3]: -1; bins are 0 to 1; do not use this packing"),
        ({"bin_index": np.array([0, 2, 0, 1])}, "bin_index[1]: 2; bins are 0 to 1; do not use this packing"),
        ({"num_bins": 3}, "bin 2: empty; every bin holds an example; do not use this packing"),
        ({"bin_index": np.array([0, 0, 1, 1])}, "bin 1: 11; the capacity is 10; do not use this packing"),
        (
            {"bin_index": np.array([0, 0, 0, 1])},
            "bin 0: 3 examples; max_segments is 2; do not use this packing",
        ),
        ({"bound": 3}, "bound: 3 with 2 bins; no packing beats its bound; do not use this packing"),
    ],
)
def test_a_broken_packing_is_rejected(broken: dict[str, Any], message: str) -> None:
    lengths = [4, 5, 6, 5]
    check_packing(lengths, 10, VALID, 2)
    with pytest.raises(ValueError) as caught:
        check_packing(lengths, 10, replace(VALID, **broken), 2)
    assert str(caught.value) == message


def test_an_overflow_of_any_resource_is_rejected() -> None:
    with pytest.raises(ValueError) as caught:
        check_packing([(1, 3), (1, 3)], (5, 5), Packing(np.array([0, 0]), num_bins=1, bound=1))
    assert str(caught.value) == "bin 0: 6 of resource 1; the capacity is 5; do not use this packing"


def test_another_seed_gives_another_packing_that_is_as_good() -> None:
    lengths = np.random.default_rng(4).integers(1, 200, 400)
    packings = [pack(lengths, 512, max_segments=8, seed=seed) for seed in range(3)]
    for packing in packings:
        check_packing(lengths, 512, packing, 8)
    assert len({packing.num_bins for packing in packings}) == 1
    assert len({tuple(packing.bin_index.tolist()) for packing in packings}) == 3


def test_bins_hold_a_mixture_of_lengths_even_where_best_fit_would_do() -> None:
    lengths = np.random.default_rng(0).integers(16, 257, 20_000)
    correlations = []
    for method in ("best-fit", "auto"):
        packing = pack(lengths, 4096, method=method)  # type: ignore[arg-type]
        check_packing(lengths, 4096, packing)
        assert packing.proven_optimal
        mixing = Mixing()
        mixing.add(lengths, packing.bin_index, np.arange(len(lengths)))
        correlations.append(mixing.length_correlation())
    assert correlations[0] is not None and correlations[1] is not None
    assert correlations[1] < 0.15 < 0.9 < correlations[0]
