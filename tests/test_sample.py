"""Sampling: draws depend on nothing but their names, and no grid within the limits is nearer than the one taken."""

import decimal
import math
import random
from fractions import Fraction
from typing import Any

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.planned import make_example, policy

from patchpack.pipeline.sampling.draws import draw, shuffled
from patchpack.pipeline.sampling.grids import nearest_grid, size_of_area
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.pipeline.stages.records import Reference, Reject
from patchpack.pipeline.stages.sample import sample

PATCH = (1, 16, 16)
Grid = tuple[int, int]


def aspect_error(grid: Grid, height: int, width: int, patch: Grid = (16, 16)) -> Fraction:
    """Returns how many times too tall or too wide a grid is, at least 1."""
    ratio = Fraction(grid[0] * patch[0] * width, grid[1] * patch[1] * height)
    return max(ratio, 1 / ratio)


def best_grid(height: int, width: int, tokens: Fraction, cap: int, patch: Grid) -> Grid:
    """Returns the grid that the rule asks for, by looking at every grid there is."""
    wanted = min(tokens, Fraction(cap))
    grids = [(h, w) for h in range(1, cap + 1) for w in range(1, cap // h + 1)]
    near = [grid for grid in grids if wanted * 88 <= 100 * grid[0] * grid[1] <= wanted * 112]
    if not near:
        whole = {max(1, math.floor(wanted)), max(1, math.ceil(wanted))}
        near = [grid for grid in grids if grid[0] * grid[1] in whole]
    return min(
        near, key=lambda grid: (aspect_error(grid, height, width, patch), abs(grid[0] * grid[1] - wanted), grid[0])
    )


pixels = st.integers(1, 400)


@settings(max_examples=250, deadline=None)
@given(
    height=pixels,
    width=pixels,
    tokens=st.fractions(min_value=Fraction(1, 50), max_value=90, max_denominator=256),
    cap=st.integers(1, 90),
    patch=st.sampled_from([(16, 16), (14, 14), (16, 8), (1, 3)]),
)
@example(height=400, width=1, tokens=Fraction(64), cap=64, patch=(16, 16))
@example(height=1, width=400, tokens=Fraction(64), cap=64, patch=(16, 16))
@example(height=100, width=100, tokens=Fraction(12), cap=90, patch=(16, 16))
@example(height=100, width=100, tokens=Fraction(363, 5), cap=90, patch=(16, 16))
@example(height=100, width=145, tokens=Fraction(3, 2), cap=5, patch=(16, 16))
@example(height=7, width=7, tokens=Fraction(1, 4), cap=1, patch=(16, 16))
def test_no_grid_within_the_limits_is_nearer(height: int, width: int, tokens: Fraction, cap: int, patch: Any) -> None:
    grid = nearest_grid(height, width, tokens, cap, patch)
    assert min(grid) >= 1 and grid[0] * grid[1] <= cap
    assert grid == best_grid(height, width, tokens, cap, patch)


def philox_word(key: int) -> int:
    """Returns the first word of Philox4x64-10 after numpy's increment, from the paper (Salmon et al., SC 2011)."""
    mask = 2**64 - 1
    counter, keys = [1, 0, 0, 0], [key & mask, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ keys[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ keys[1],
            first & mask,
        ]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return counter[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(), name=st.text(max_size=10), numbers=st.lists(st.integers(0, 99), max_size=3))
def test_a_draw_is_a_raw_word_of_philox(seed: int, name: str, numbers: list[int]) -> None:
    text = "\0".join([str(seed), name, *map(str, numbers)])
    assert draw(seed, name, *numbers) == philox_word(xxhash.xxh3_128_intdigest(text.encode()))


def test_draws_never_change() -> None:
    assert draw(0, "abc", 1) == 1465999130183598504
    assert draw(7, "0" * 32, 0) == 16318106923927468035
    assert shuffled(8, 7, "bins", 3) == [1, 7, 3, 4, 0, 2, 5, 6]


def side_of(name: str, rule: str, view: int = 0, seed: int = 0) -> int:
    """Returns the side that a square example is drawn at."""
    square = make_example(name, height=500, width=500)
    found = sample(square, view, policy(rule, cap=10**4, oversize="shrink", seed=seed))
    assert isinstance(found, Reference) and found.target_height == found.target_width
    return found.target_height


def test_a_side_depends_on_seed_example_and_view_alone() -> None:
    names = [f"{number}.jpg" for number in range(40)]
    cases = [(name, "side:1-4096", view, seed) for name in names for view in (0, 1) for seed in (0, 1)]
    forwards = [side_of(*case) for case in cases]
    backwards = [side_of(*case) for case in reversed(cases)]
    assert forwards == backwards[::-1]
    # 160 draws from 4,096 values: a few meet by chance, but none of the names is ignored
    assert len(set(forwards)) > 140


def test_every_side_of_the_range_is_drawn_and_no_other() -> None:
    assert {side_of(f"{number}.jpg", "side:64-69") for number in range(200)} == {64, 65, 66, 67, 68, 69}
    assert {side_of(f"{number}.jpg", "side:80-80") for number in range(5)} == {80}
    wide = [side_of(f"{number}.jpg", "side:64-256") for number in range(2000)]
    assert (min(wide), max(wide)) == (64, 256)
    assert 158 <= sum(wide) / len(wide) <= 162


def test_shuffled_is_a_permutation_that_depends_on_its_names_alone() -> None:
    for count in (0, 1, 2, 50):
        assert sorted(shuffled(count, 0, "bins", 1)) == list(range(count))
    orders = [shuffled(50, 0, "bins", 1), shuffled(50, 1, "bins", 1), shuffled(50, 0, "bins", 2)]
    assert orders[0] == shuffled(50, 0, "bins", 1) and len(set(map(tuple, orders))) == 3


@settings(max_examples=60, deadline=None)
@given(side=st.integers(1, 600), height=pixels, width=pixels)
def test_a_size_has_the_area_of_the_side_and_the_aspect_of_the_source(side: int, height: int, width: int) -> None:
    with decimal.localcontext(prec=60):
        for found, along, across in zip(
            size_of_area(side * side, height, width), (height, width), (width, height), strict=True
        ):
            exact = (decimal.Decimal(side * side * along) / across).sqrt()
            assert found == max(1, int(exact.to_integral_value(decimal.ROUND_HALF_UP)))


def bisect_and_ceil(height: int, width: int, tokens: int) -> Grid:
    """Returns the grid by the rule of SigLIP 2 and others: the largest scale whose sides, rounded up, fit."""
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        if math.ceil(height * scale / 16) * math.ceil(width * scale / 16) <= tokens:
            low = scale
        else:
            high = scale
    return math.ceil(height * low / 16), math.ceil(width * low / 16)


def test_aspect_is_kept_better_than_by_bisect_and_ceil_and_so_is_the_count() -> None:
    chance = random.Random(0)
    ours, theirs, counts = [], [], []
    for _ in range(1500):
        width = round(100 * 40 ** chance.random())
        height = round(width * 3 ** chance.uniform(-1, 1))
        grid = nearest_grid(height, width, Fraction(256), 10**4, (16, 16))
        ours.append(float(aspect_error(grid, height, width)) - 1)
        theirs.append(float(aspect_error(bisect_and_ceil(height, width, 256), height, width)) - 1)
        counts.append(grid[0] * grid[1])
    assert sum(ours) < sum(theirs) / 2 and max(ours) < max(theirs) / 2
    assert abs(sum(counts) / len(counts) / 256 - 1) < 0.02
    assert min(counts) >= 256 * 0.88 and max(counts) <= 256 * 1.12


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), patch=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_native_rounds_to_the_nearest_whole_grid(height: int, width: int, patch: Grid) -> None:
    found = sample(make_example("a", 0, height, width), 0, policy(tubelet=(1, *patch), cap=10**6))
    assert isinstance(found, Reference)
    assert (found.target_height, found.target_width) == (height, width)
    rounded = [
        (decimal.Decimal(size) / side).to_integral_value(decimal.ROUND_HALF_UP)
        for size, side in zip((height, width), patch, strict=True)
    ]
    assert found.grid == (1, *(max(1, int(side)) for side in rounded))


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    frames=st.integers(0, 9),
    depth=st.integers(1, 3),
    cap=st.integers(10, 300),
    rule=st.sampled_from(["native", "side:64-256", "side:1-900"]),
)
def test_shrinking_stays_under_the_cap_and_shows(
    height: int, width: int, frames: int, depth: int, cap: int, rule: str
) -> None:
    clip = make_example("a", 0, height, width, frame_pts=tuple(range(frames)))
    patch = (depth, 16, 16)
    free, found = (sample(clip, 0, policy(rule, tubelet=patch, cap=most)) for most in (10**9, cap))
    assert isinstance(free, Reference) and isinstance(found, Reference)
    steps = len(range(0, max(1, frames), depth))
    assert free.grid[0] == found.grid[0] == steps
    assert found.num_tokens <= cap and min(found.grid) >= 1
    wanted = (free.view, free.target_height, free.target_width)
    assert (found.view, found.target_height, found.target_width) == wanted, "what was requested is kept"
    if free.num_tokens <= cap:
        assert found == free
    else:
        assert found.grid[1:] == best_grid(height, width, Fraction(cap // steps), cap // steps, (16, 16))
        assert sample(clip, 0, policy(rule, tubelet=patch, cap=cap, oversize="reject"))[:3] == (
            "a",
            "sample",
            "oversize",
        )


@pytest.mark.parametrize(
    ("frames", "oversize", "detail"),
    [
        (
            0,
            "reject",
            "20 tokens in one frame step; --max-tokens-per-example is 16 and --oversize is reject; "
            "raise it or use --oversize shrink",
        ),
        (
            3,
            "reject",
            "20 tokens in one frame step; --max-tokens-per-example is 16 and --oversize is reject; "
            "raise it or use --oversize shrink",
        ),
        (17, "reject", "17 time steps; --max-tokens-per-example is 16; raise it or lower --clip-frames"),
        (17, "shrink", "17 time steps; --max-tokens-per-example is 16; raise it or lower --clip-frames"),
    ],
)
def test_a_reject_says_what_is_too_large(frames: int, oversize: str, detail: str) -> None:
    clip = make_example("a.mp4", 0, 64, 80, frame_pts=tuple(range(frames)))
    assert sample(clip, 0, policy("native", cap=16, oversize=oversize, seed=0)) == Reject(
        "a.mp4", "sample", "oversize", detail
    )


def test_a_reject_counts_the_steps_where_one_alone_would_fit() -> None:
    clip = make_example("a.mp4", 0, 32, 80, frame_pts=(0, 1))
    assert sample(clip, 0, policy("native", cap=16, oversize="reject", seed=0)) == Reject(
        "a.mp4",
        "sample",
        "oversize",
        "20 tokens in 2 frame steps; --max-tokens-per-example is 16 and --oversize is reject; "
        "raise it or use --oversize shrink",
    )


@pytest.mark.parametrize(
    "text",
    ["", "side", "side:64", "side:0-9", "side:9-8", "side:-1-5", "side:a-b", "side:1.5-2", "Native", "sides:1-2"],
)
def test_a_resolution_that_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        Resolution.parse(text)
    assert str(refused.value).startswith(f"--resolution {text}: no such rule; it is ")
    assert "side:LO-HI with 1 <= LO <= HI in px" in str(refused.value)
    assert str(refused.value).endswith("; leave it out for side:64-256")


def test_an_example_of_exactly_the_cap_is_not_shrunk() -> None:
    example = make_example("a.jpg", 0)
    free = sample(example, 0, policy(tubelet=(1, 4, 4), cap=10_000, oversize="shrink"))
    assert isinstance(free, Reference)
    for cap, uncapped in ((free.num_tokens, 0), (free.num_tokens - 1, free.num_tokens)):
        capped = sample(example, 0, policy(tubelet=(1, 4, 4), cap=cap, oversize="shrink"))
        assert isinstance(capped, Reference)
        assert (capped.uncapped_tokens, capped.num_tokens <= cap) == (uncapped, True)
    assert isinstance(sample(example, 0, policy(tubelet=(1, 4, 4), cap=free.num_tokens, oversize="reject")), Reference)
