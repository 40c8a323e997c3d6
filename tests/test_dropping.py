"""Token dropping: rates by the papers' formulas, kept counts and positions that nothing else decides, sequences filled up."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planned import make_example, policy
from support.plans import plan_group

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.sampling.draws import beta, draw
from patchpack.pipeline.sampling.dropping import Dropping, fill_up, kept_tokens, most_tokens, num_kept
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample

NUM_DRAWS = 20_000


def rates(rule: str, *, side: float = 100.0, span: tuple[int, int] = (64, 384), views: int = 1) -> list[float]:
    """Returns 20,000 draws of a rule, of the first view."""
    parsed = Dropping.parse(rule)
    return [parsed.rate(draw(1, f"{number}"), 1, f"{number}", 0, views, side, span) for number in range(NUM_DRAWS)]


def test_a_constant_rate_is_one() -> None:
    assert set(rates("constant:0.5")) == {0.5}
    assert set(rates("none")) == {0.0}


@pytest.mark.parametrize(("mean", "most"), [(0.4, 0.8), (0.2, 0.5), (0.45, 0.5)])
def test_beta_rates_have_the_mean_limit_and_variance_of_navit(mean: float, most: float) -> None:
    # appendix B.7: u = rate / max of mean d / max and variance 0.3 u (1 - u)
    drawn = [rate / most for rate in rates(f"beta:{mean},{most}")]
    u = mean / most
    assert min(drawn) >= 0 and max(drawn) <= 1
    assert statistics.fmean(drawn) == pytest.approx(u, abs=0.012)
    assert statistics.pvariance(drawn) == pytest.approx(0.3 * u * (1 - u), rel=0.05)


def test_beta_of_two_and_three_has_the_third_moment_of_its_density() -> None:
    # E x^3 = a (a+1) (a+2) / ((a+b) (a+b+1) (a+b+2)) = 24 / 210
    drawn = [beta(2.0, 3.0, 5, f"{number}") for number in range(NUM_DRAWS)]
    assert statistics.fmean(x**3 for x in drawn) == pytest.approx(24 / 210, rel=0.05)


def test_beta_at_its_limits_is_constant() -> None:
    assert set(rates("beta:0,0.5")) == {0.0}
    assert set(rates("beta:0.5,0.5")) == {0.5}


@pytest.mark.parametrize(("side", "middle"), [(64, 0.2), (384, 0.6), (224, 0.4), (144, 0.3)])
def test_rates_by_resolution_are_linear_in_the_side_within_two_sigma(side: float, middle: float) -> None:
    drawn = rates("resolution:0.2-0.6", side=side)
    assert min(drawn) >= middle - 0.04 and max(drawn) <= middle + 0.04
    assert statistics.fmean(drawn) == pytest.approx(middle, abs=0.0005)
    # a normal distribution cut off at two sigma has 0.8796 of the deviation
    assert statistics.pstdev(drawn) == pytest.approx(0.02 * 0.8796, rel=0.03)


def test_rates_by_resolution_stay_rates() -> None:
    assert min(rates("resolution:0-0.99", side=64)) == 0.0
    assert max(rates("resolution:0-0.999", side=384)) < 1


def test_a_schedule_goes_from_one_end_to_the_other_along_a_sigmoid() -> None:
    rule = Dropping.parse("schedule:0.6->0.1")
    views = [rule.rate(0, 0, "a", view, 11, 100, (0, 0)) for view in range(11)]
    assert views == sorted(views, reverse=True)
    expected = [0.6 - 0.5 / (1 + math.exp(-5 * (2 * view / 10 - 1))) for view in range(11)]
    assert views == pytest.approx(expected)
    assert views[5] == pytest.approx(0.35) and views[0] == pytest.approx(0.6, abs=0.004)


@given(tokens=st.integers(1, 5000), rate=st.floats(0, 0.999))
def test_kept_counts_are_nearest_and_never_none(tokens: int, rate: float) -> None:
    kept = num_kept(tokens, rate)
    assert 1 <= kept <= tokens
    assert kept == 1 or abs(kept - tokens * (1 - rate)) <= 0.5 + 1e-6


@given(kept=st.integers(1, 3000), rate=st.floats(0, 0.99))
def test_the_most_tokens_of_which_so_many_are_kept_is_the_most(kept: int, rate: float) -> None:
    most = most_tokens(kept, rate)
    assert num_kept(most, rate) <= kept < num_kept(most + 1, rate) or most == kept


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 400), part=st.floats(0, 1), view=st.integers(0, 3))
def test_kept_tokens_are_the_beginning_of_one_order(tokens: int, part: float, view: int) -> None:
    kept = max(1, int(tokens * part))
    numbers, ranks = kept_tokens(tokens, kept, 7, "abc", view)
    assert sorted(ranks.tolist()) == list(range(kept))
    assert numbers.tolist() == sorted(set(numbers.tolist())) and numbers[-1] < tokens
    # whoever keeps fewer keeps the first of the same order
    fewer = max(1, kept // 2)
    assert numbers[ranks < fewer].tolist() == kept_tokens(tokens, fewer, 7, "abc", view)[0].tolist()


def test_every_token_is_kept_as_often_as_any_other() -> None:
    counts = np.zeros(40, int)
    for number in range(2000):
        counts[kept_tokens(40, 10, 0, f"{number}", 0)[0]] += 1
    assert counts.sum() == 20_000 and abs(counts - 500).max() < 100


@given(
    kept=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    extra=st.lists(st.integers(0, 9), min_size=12, max_size=12),
    free=st.integers(0, 80),
    align=st.sampled_from([1, 4]),
)
def test_filling_up_uses_all_that_is_free_or_all_that_may_be_kept(
    kept: list[int], extra: list[int], free: int, align: int
) -> None:
    def runs(counts: list[int]) -> int:
        return sum(-(-count // align) * align for count in counts)

    most = [count + more for count, more in zip(kept, extra, strict=False)]
    capacity = (runs(kept) + free) // align * align
    filled = fill_up(kept, most, capacity, align)
    assert all(before <= now <= limit for before, now, limit in zip(kept, filled, most, strict=True))
    assert runs(filled) <= capacity
    if align == 1:
        assert sum(filled) == min(capacity, sum(most))
    elif runs(filled) < capacity:
        assert filled == most


def references(config: PlanConfig, count: int) -> list[Reference]:
    """Returns images of sides 200 to 1,200, sampled."""
    sizes = [(200 + 7 * n % 1000, 200 + 13 * n % 1000) for n in range(count)]
    drawn = [
        sample(make_example(f"{n}.jpg", height=height, width=width), 0, config.policy)
        for n, (height, width) in enumerate(sizes)
    ]
    return [one for one in drawn if isinstance(one, Reference)]


@pytest.mark.parametrize("length", [256, 1024, 4096])
@pytest.mark.slow_beyond(1)
def test_sequences_are_filled_with_tokens_that_would_be_dropped(length: int) -> None:
    config = PlanConfig(sequence_length=length, drop_tokens="beta:0.3,0.6", resolution="side:64-256")
    members = references(config, 3000)
    asked = {one.example.example_id: one for one in members}
    plan = plan_group(0, members, config, None)
    rows = [row for part in plan.shards for row in part]
    assert len(rows) == len(members)
    for row in rows:
        one = asked[row.example_id]
        assert one.num_tokens <= row.num_tokens <= max(one.num_tokens, min(one.grid.num_tokens, one.num_tokens * 1.05))
        assert (row.grid_t, row.grid_h, row.grid_w) == one.grid
    shards = plan.listed
    padding = 1 - sum(shard.num_tokens for shard in shards) / (length * sum(shard.num_sequences for shard in shards))
    # all but the last sequence is full; see benchmarks/planned.py for the padding of large sets
    assert padding <= 1.2 / sum(shard.num_sequences for shard in shards) + 0.0002
    rigid = plan_group(0, members, PlanConfig(**{**vars_of(config), "drop_slack": 0.0}), None)
    assert {row.example_id: row.num_tokens for part in rigid.shards for row in part} == {
        name: one.num_tokens for name, one in asked.items()
    }


def vars_of(config: PlanConfig) -> dict[str, object]:
    """Returns the options of a config that are not the defaults."""
    return {name: getattr(config, name) for name in ("sequence_length", "drop_tokens", "resolution")}


def test_a_cap_is_of_what_is_kept() -> None:
    large = make_example("a", height=512, width=512)
    how = policy("native", cap=512, dropping=Dropping.parse("constant:0.5"))
    found = sample(large, 0, how)
    assert isinstance(found, Reference) and (found.grid, found.num_tokens) == ((1, 32, 32), 512)
    smaller = sample(large, 0, policy("native", cap=100, dropping=Dropping.parse("constant:0.5")))
    assert isinstance(smaller, Reference)
    assert smaller.num_tokens <= 100 < smaller.grid.num_tokens <= 200 and smaller.uncapped_tokens == 512
    rejected = sample(large, 0, policy("native", cap=100, oversize="reject", dropping=Dropping.parse("constant:0.5")))
    assert rejected[:3] == ("a", "sample", "oversize") and "512 tokens that are kept" in rejected[3]


@pytest.mark.parametrize(
    "text",
    [
        "constant:1",
        "constant:",
        "beta:0.5,0.4",
        "beta:0.5",
        "resolution:0.5",
        "schedule:0.1-0.2",
        "some",
        "constant:-0.1",
        "none:1",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--drop-tokens .*: no such rule; .*; leave it out for none$"):
        Dropping.parse(text)
