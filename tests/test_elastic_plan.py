"""Elastic fill in the plan: sizes move within the slack, sequences fill, and nothing else changes."""

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from support.planned import make_example

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.stages.plan import GroupPlan, plan_group
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import Resolution, candidate_lengths, nearest_grid, sample

CONFIG = PlanConfig(sequence_length=1024)
PATCH = (1, 16, 16)


def draw_references(count: int, config: PlanConfig = CONFIG, steps: int = 1) -> list[Reference]:
    """Returns images (or clips) of many aspects, sampled as the pipeline does."""
    drawn = random.Random(3)
    found = []
    for number in range(count):
        size = {"height": drawn.randint(200, 900), "width": drawn.randint(200, 900)}
        pts = tuple(range(steps)) if steps > 1 else ()
        example = make_example(f"{number}.jpg", **size, frame_pts=pts)
        rule = Resolution.parse(config.resolution)
        reference = sample(example, 0, rule, config.tubelet, config.token_cap, config.oversize, config.seed)
        assert isinstance(reference, Reference)
        found.append(reference)
    return found


def loads(plan: GroupPlan) -> list[int]:
    """Returns the tokens of each sequence."""
    found = []
    for rows in plan.shards:
        tokens: Counter[int] = Counter()
        for row in rows:
            tokens[row.sequence] += row.grid_t * row.grid_h * row.grid_w
        found += [tokens[number] for number in sorted(tokens)]
    return found


@pytest.fixture(scope="module")
def references() -> list[Reference]:
    return draw_references(600)


def test_all_sequences_but_the_last_two_are_exactly_full(references: list[Reference]) -> None:
    plan = plan_group(0, references, [], CONFIG, None)
    tokens = loads(plan)
    assert len(tokens) > 60 and sum(load < 1024 for load in tokens) <= 2
    assert max(tokens) <= 1024
    rigid = plan_group(0, references, [], replace(CONFIG, resolution_slack=0.0), None)
    assert len(tokens) <= len(loads(rigid))
    assert sum(load == 1024 for load in tokens) > sum(load == 1024 for load in loads(rigid))


def test_every_example_is_there_once_within_the_slack_and_wanted_sizes_stay(references: list[Reference]) -> None:
    rows = [row for part in plan_group(0, references, [], CONFIG, None).shards for row in part]
    by_key = {reference.example.source.key: reference for reference in references}
    assert sorted(row.key for row in rows) == sorted(by_key)
    moved = 0
    for row in rows:
        wanted = by_key[row.key]
        assert (row.target_height, row.target_width) == (wanted.target_height, wanted.target_width)
        grid = (row.grid_t, row.grid_h, row.grid_w)
        # a slow oracle: some whole side within 5 % asks for this very grid
        sides = [side for side in range(1, 400) if wanted.side <= side * 1.05 and side <= wanted.side * 1.05]
        example = wanted.example
        asked = {
            nearest_grid(example.source_height, example.source_width, Fraction(side * side, 256), 10**6, (16, 16))
            for side in sides
        }
        assert grid[0] == 1 and grid[1:] in asked
        assert grid == wanted.grid or 0.88 <= grid[1] * grid[2] / (wanted.side**2 / 256) <= 1.12
        moved += grid != wanted.grid
    assert 0 < moved < len(rows) // 4


def test_the_summary_counts_realised_lengths(references: list[Reference]) -> None:
    plan = plan_group(0, references, [], CONFIG, None)
    rows = [row for part in plan.shards for row in part]
    lengths = Counter(row.grid_t * row.grid_h * row.grid_w for row in rows)
    assert plan.summary.lengths[0] == dict(lengths)
    (chunk,) = plan.summary.chunks
    assert chunk.num_sequences == len(loads(plan)) == chunk.bound == -(-sum(loads(plan)) // 1024)


def test_the_order_of_arrival_changes_nothing(references: list[Reference]) -> None:
    other = list(references)
    random.Random(1).shuffle(other)
    assert plan_group(0, other, [], CONFIG, None) == plan_group(0, references, [], CONFIG, None)
    assert loads(plan_group(1, references, [], CONFIG, None)) != loads(plan_group(0, references, [], CONFIG, None))


def test_native_and_shrunk_sizes_stay() -> None:
    native = replace(CONFIG, resolution="native", sequence_length=4096)
    wanted = {reference.example.source.key: reference.grid for reference in draw_references(60, native)}
    rows = [row for part in plan_group(0, draw_references(60, native), [], native, None).shards for row in part]
    assert {row.key: (row.grid_t, row.grid_h, row.grid_w) for row in rows} == wanted
    capped = replace(CONFIG, resolution="side:200-256", max_tokens_per_example=100)
    for reference in draw_references(40, capped):
        assert reference.side == 0
        assert list(candidate_lengths(reference, Fraction(1, 20), PATCH, 100)) == [reference.num_tokens]


def test_a_menu_has_the_wanted_count_for_nothing_and_others_for_the_change_of_side() -> None:
    for steps in (1, 8):
        for reference in draw_references(40, replace(CONFIG, sequence_length=2048), steps):
            if not reference.side:
                continue
            options = candidate_lengths(reference, Fraction(1, 20), PATCH, 2048)
            assert list(options) == sorted(options)
            assert options[reference.num_tokens] == (0, reference.grid)
            for count, (cost, grid) in options.items():
                assert count == grid[0] * grid[1] * grid[2] <= 2048
                assert grid[0] == steps
                assert (cost == 0) == (count == reference.num_tokens)
                assert cost <= 50
