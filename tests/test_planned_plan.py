"""Planned counts in the plan: sizes move within the slack where that saves sequences, and nothing else changes."""

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from support.planned import make_example
from support.plans import GroupPlan, plan_group

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import candidate_lengths, sample

CONFIG = PlanConfig(sequence_length=256)
RIGID = replace(CONFIG, resolution_slack=0.0)
LAYOUT, RULE = CONFIG.layouts[0], CONFIG.rule


def draw_references(count: int, config: PlanConfig = CONFIG, steps: int = 1) -> list[Reference]:
    """Returns images (or clips) of many aspects, sampled as the pipeline does."""
    drawn = random.Random(3)
    found = []
    for number in range(count):
        size = {"height": drawn.randint(200, 900), "width": drawn.randint(200, 900)}
        pts = tuple(range(steps)) if steps > 1 else ()
        example = make_example(f"{number}.jpg", **size, frame_pts=pts)
        reference = sample(example, 0, config.policy)
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


def aspect_error(reference: Reference, grid: tuple[int, int, int]) -> Fraction:
    example = reference.example
    ratio = Fraction(grid[1] * example.source_width, grid[2] * example.source_height)
    return max(ratio, 1 / ratio)


@pytest.fixture(scope="module")
def references() -> list[Reference]:
    return draw_references(1500)


def test_fewer_sequences_are_needed_where_two_to_a_sequence_hardly_fit(references: list[Reference]) -> None:
    wide = replace(CONFIG, resolution_slack=0.1)
    planned, rigid = (loads(plan_group(0, references, config, None)) for config in (wide, RIGID))
    assert max(planned) <= 256
    assert len(rigid) - len(planned) >= 2
    assert 0.99 * sum(rigid) < sum(planned)


@pytest.mark.slow
def test_where_sequences_are_full_anyway_nothing_moves() -> None:
    config = replace(CONFIG, sequence_length=1024)
    references = draw_references(1500, config)
    plan = plan_group(0, references, config, None)
    grids = {reference.example.source.key: reference.grid for reference in references}
    assert {row.key: (row.grid_t, row.grid_h, row.grid_w) for part in plan.shards for row in part} == grids
    assert [chunk.num_moved for chunk in plan.chunks] == [0]


def test_every_example_is_there_once_within_its_limits_and_requested_sizes_stay(references: list[Reference]) -> None:
    plan = plan_group(0, references, CONFIG, None)
    rows = [row for part in plan.shards for row in part]
    by_key = {reference.example.source.key: reference for reference in references}
    assert sorted(row.key for row in rows) == sorted(by_key)
    moved = 0
    for row in rows:
        reference, grid = by_key[row.key], (row.grid_t, row.grid_h, row.grid_w)
        assert (row.target_height, row.target_width) == (reference.target_height, reference.target_width)
        assert grid[0] == 1
        if grid != reference.grid:
            moved += 1
            assert 1 / 1.05**2 <= grid[1] * grid[2] / reference.num_tokens <= 1.05**2
            assert aspect_error(reference, grid) <= max(Fraction(105, 100), aspect_error(reference, reference.grid))
    assert 0 < moved < len(rows) // 4
    assert [chunk.num_moved for chunk in plan.chunks] == [moved]


def test_the_summary_counts_realised_lengths(references: list[Reference]) -> None:
    plan = plan_group(0, references, CONFIG, None)
    rows = [row for part in plan.shards for row in part]
    lengths = Counter(row.grid_t * row.grid_h * row.grid_w for row in rows)
    assert plan.lengths[0] == dict(lengths)
    (chunk,) = plan.chunks
    assert chunk.num_sequences == len(loads(plan)) >= chunk.bound >= -(-sum(loads(plan)) // 256)


@pytest.mark.slow
def test_the_order_of_arrival_changes_nothing(references: list[Reference]) -> None:
    other = list(references)
    random.Random(1).shuffle(other)
    assert plan_group(0, other, CONFIG, None) == plan_group(0, references, CONFIG, None)
    assert loads(plan_group(1, references, CONFIG, None)) != loads(plan_group(0, references, CONFIG, None))


def test_native_and_shrunk_sizes_stay() -> None:
    native = replace(CONFIG, resolution="native", sequence_length=4096)
    grids = {reference.example.source.key: reference.grid for reference in draw_references(60, native)}
    rows = [row for part in plan_group(0, draw_references(60, native), native, None).shards for row in part]
    assert {row.key: (row.grid_t, row.grid_h, row.grid_w) for row in rows} == grids
    capped = replace(CONFIG, resolution="side:200-256", max_tokens_per_example=100)
    shrunk = draw_references(40, capped)
    assert not any(reference.is_drawn for reference in shrunk)
    rows = [row for part in plan_group(0, shrunk, capped, None).shards for row in part]
    assert {row.key: row.num_tokens for row in rows} == {one.example.source.key: one.num_tokens for one in shrunk}


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.slow
def test_candidates_are_all_grids_within_the_limits_each_count_at_its_least_cost(steps: int) -> None:
    slack = Fraction(1, 10)
    for reference in draw_references(60, replace(CONFIG, sequence_length=2048), steps):
        if not reference.is_drawn:
            continue
        options = candidate_lengths(reference.grid, reference.box[2:], slack, LAYOUT, RULE, 2048)
        assert list(options) == sorted(options)
        count, own = reference.num_tokens // steps, aspect_error(reference, reference.grid)
        # a slow oracle: every grid there is
        expected: dict[int, float] = {count: 0.0}
        for h in range(1, 60):
            for w in range(1, 60):
                error = aspect_error(reference, (steps, h, w))
                within = count / (1 + slack) ** 2 <= h * w <= min(2048 // steps, count * (1 + slack) ** 2)
                if within and error <= max(own, Fraction(105, 100)) and h * w != count:
                    cost = 1.15 * abs(h * w - count) + float(max(Fraction(0), error - own)) * count
                    expected[h * w] = min(cost, expected.get(h * w, cost))
        assert sorted(options) == [steps * number for number in sorted(expected)]
        for number, (cost, grid) in options.items():
            assert number == grid[0] * grid[1] * grid[2]
            assert grid[0] == steps
            assert expected[number // steps] <= cost / steps < expected[number // steps] + 1
        assert options[reference.num_tokens] == (0, reference.grid)
