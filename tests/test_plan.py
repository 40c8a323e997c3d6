"""The plan: the same whatever the order of arrival, every input in it once, every limit kept."""

import dataclasses
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planned import make_example, make_reference, reference_of
from support.plans import GroupPlan, plan_group, save_group

from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.inputs.facts import Facts
from patchpack.pipeline.sampling.draws import shuffled
from patchpack.pipeline.stages import packed as packed_module
from patchpack.pipeline.stages import plan as plan_module
from patchpack.pipeline.stages.buckets import num_buckets
from patchpack.pipeline.stages.group import group_of
from patchpack.pipeline.stages.plan import (
    rest_group,
    sequence_bytes,
)
from patchpack.pipeline.stages.planned import PLAN_SCHEMA
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample
from patchpack.pipeline.stages.saved import numbered, read_group, read_shard_rows, read_summaries
from patchpack.pipeline.stages.summary import ShardPlan
from patchpack.pipeline.stages.write import fingerprint

# 12 tokens and at most 2 examples a sequence; 5 examples a chunk; 2 sequences of 240 bytes a shard
CONFIG = PlanConfig(
    tubelet=(1, 2, 2), sequence_length=12, max_segments=2, group_size=5, shard_bytes=480, views=2, seed=3
)


def test_a_sequence_has_the_bytes_of_its_raw_columns() -> None:
    assert sequence_bytes(CONFIG.layouts[0]) == 12 * (1 * 2 * 2 * 3) + 12 * 2 + 12 * 3 * 2 == 240


grids = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
keys = st.sampled_from(["a", "b", "a/b", "é", "c"])


@st.composite
def arrivals(draw: Any) -> list[Reference]:
    """Draws what falls into a group: examples with both their views or one of them."""
    named = draw(st.lists(st.tuples(keys, st.integers(0, 2)), unique=True, max_size=14))
    members: list[Reference] = []
    for key, clip in named:
        views = draw(st.sampled_from([(0, 1), (0, 1), (0,), (1,)]))
        members += [make_reference(key, draw(grids), view, clip) for view in views]
    return members


def placed(plan: GroupPlan) -> list[tuple[str, int, int, tuple[int, int, int]]]:
    """Returns what stands in a plan, as (key, clip, view, grid)."""
    return [(row.key, row.clip, row.view, (row.grid_t, row.grid_h, row.grid_w)) for rows in plan.shards for row in rows]


@settings(max_examples=60, deadline=None)
@given(members=arrivals(), data=st.data())
@pytest.mark.slow
def test_the_order_of_arrival_changes_nothing(members: list[Reference], data: st.DataObject) -> None:
    other = data.draw(st.permutations(members))
    assert plan_group(7, members, CONFIG, None) == plan_group(7, other, CONFIG, None)


@settings(max_examples=80, deadline=None)
@given(members=arrivals())
@pytest.mark.slow
def test_every_input_is_in_the_plan_once(members: list[Reference]) -> None:
    plan = plan_group(7, members, CONFIG, None)
    wanted = [(ref.example.source.key, ref.example.clip, ref.view, ref.grid) for ref in members]
    assert Counter(placed(plan)) == Counter(wanted)
    for view in (0, 1):
        lengths = Counter(ref.num_tokens for ref in members if ref.view == view)
        assert plan.lengths[view] == dict(lengths)


@settings(max_examples=80, deadline=None)
@given(members=arrivals())
@pytest.mark.slow
def test_every_limit_is_kept(members: list[Reference]) -> None:
    plan = plan_group(7, members, CONFIG, None)
    listed = plan.listed
    assert [(shard.group, shard.index) for shard in listed] == [(7, n) for n in range(len(listed))]
    for view in (0, 1):
        places = [shard.row_group for shard in listed if shard.view == view]
        assert places == list(range(len(places)))
    for shard, rows in zip(listed, plan.shards, strict=True):
        numbers = [row.sequence for row in rows]
        assert numbers == sorted(numbers) and set(numbers) == set(range(shard.num_sequences))
        assert {row.view for row in rows} == {shard.view}
        sequences = [[row for row in rows if row.sequence == number] for number in range(shard.num_sequences)]
        tokens = [sum(row.grid_t * row.grid_h * row.grid_w for row in sequence) for sequence in sequences]
        assert max(tokens) <= CONFIG.sequence_length
        assert max(map(len, sequences)) <= CONFIG.max_segments
        assert (shard.num_segments, shard.num_tokens) == (len(rows), sum(tokens))
        assert shard.num_sequences <= 2, "two sequences are as many as --shard-bytes holds"
    for view in (0, 1):
        chunks = [chunk for chunk in plan.chunks if chunk.view == view]
        sizes = [chunk.num_examples for chunk in chunks]
        assert max(sizes, default=0) <= CONFIG.group_size and max(sizes, default=0) - min(sizes, default=0) <= 1
        assert sum(sizes) == sum(member.view == view for member in members)
        assert len(sizes) == -(-sum(sizes) // CONFIG.group_size)
        assert all(chunk.bound <= chunk.num_sequences for chunk in chunks)
        made = [shard.num_sequences for shard in listed if shard.view == view]
        assert sum(made) == sum(chunk.num_sequences for chunk in chunks)


def test_sequences_are_stored_in_shuffled_order(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [make_reference(f"{n}", (1, 1, 1 + n % 12)) for n in range(20)]
    config = dataclasses.replace(CONFIG, group_size=100, shard_bytes=10**6, views=1)
    [stored] = plan_group(7, members, config, None).shards
    monkeypatch.setattr(packed_module, "permutation", lambda count, *names: np.arange(count))
    [packed] = plan_group(7, members, config, None).shards
    num_sequences = 1 + packed[-1].sequence
    order = shuffled(num_sequences, 3, "bins", 7, 0, 0)
    expected = [[row.key for row in packed if row.sequence == place] for place in order]
    found = [[row.key for row in stored if row.sequence == number] for number in range(num_sequences)]
    assert found == expected != expected[::-1] and order != list(range(num_sequences))


@pytest.mark.parametrize(
    ("sequences", "shard_bytes", "sizes"), [(7, 720, [2, 2, 3]), (6, 720, [3, 3]), (3, 1, [1] * 3)]
)
def test_shards_of_a_chunk_are_even(sequences: int, shard_bytes: int, sizes: list[int]) -> None:
    config = dataclasses.replace(CONFIG, group_size=100, shard_bytes=shard_bytes, views=1)
    plan = plan_group(0, [make_reference(f"{n}", (3, 2, 2)) for n in range(sequences)], config, None)
    assert sorted(shard.num_sequences for shard in plan.listed) == sizes


@pytest.mark.parametrize(
    ("sequences", "shard_bytes", "sizes"),
    [
        # 2 sequences of 240 bytes a shard, in groups of 3: a shard holds one group, whatever its bytes
        (7, 480, [3, 3, 1]),
        (6, 480, [3, 3]),
        (2, 480, [2]),
        # two shards of 4 groups and a rest
        (13, 240 * 7, [6, 7]),
        (12, 10**6, [12]),
        (14, 240 * 5, [3, 6, 5]),
    ],
)
def test_shards_of_a_balanced_set_hold_whole_groups_but_the_last(
    sequences: int, shard_bytes: int, sizes: list[int]
) -> None:
    config = dataclasses.replace(CONFIG, group_size=4, shard_bytes=shard_bytes, views=2, balance_step=3)
    members = [make_reference(f"{n}", (3, 2, 2), view) for n in range(sequences) for view in (0, 1)]
    listed = plan_group(0, members, config, None).listed
    # chunks of 4 are packed alone and balanced together: one rest a view
    assert [[shard.num_sequences for shard in listed if shard.view == view] for view in (0, 1)] == [sizes, sizes]


def cut(members: list[Reference], num_groups: int = 1, **more: Any) -> list[ShardPlan]:
    """Returns the shards of a group of photos or clips under the default options."""
    plan = plan_group(0, members, dataclasses.replace(PlanConfig(resolution_slack=0), **more), None, num_groups)
    return plan.listed


def photos(count: int, height: int, width: int) -> list[Reference]:
    """Returns images of 108 tokens each, sized as given."""
    return [reference_of(make_example(f"{n}.jpg", height=height, width=width), (1, 9, 12)) for n in range(count)]


def test_a_set_that_fits_one_shard_is_cut_into_shards_of_a_few_hundred_pictures() -> None:
    # 2,000 of 500x375: 223 sequences, 180 MB, four seconds of decoding
    shards = cut(photos(2000, 375, 500))
    assert len(shards) == 8 and {shard.num_sequences for shard in shards} == {27, 28}
    assert len(cut(photos(256, 375, 500))) == 1
    assert [dataclasses.replace(shard, group=0) for shard in shards] == cut(photos(2000, 375, 500)[::-1], workers=3)


def test_large_pictures_and_clips_are_cut_finer_by_their_pixels() -> None:
    # 12 megapixels: 37 are 450 million
    assert len(cut(photos(200, 3000, 4000))) == 6
    clips: list[Reference] = [
        reference_of(make_example(f"{n}.mp4", height=1080, width=1920, frame_pts=tuple(range(16))), (16, 6, 10))
        for n in range(27)
    ]
    # 27 x 33 million pixels, in one sequence each
    assert [shard.num_sequences for shard in cut(clips)] == [13, 14]


def test_shards_of_a_large_set_are_as_large_as_their_bytes_allow() -> None:
    # one of 100 groups: 256 shards are enough for the dataset, so 3 for this group; bytes decide where they need more
    members = photos(2000, 375, 500)
    assert len(cut(members, 100)) == 3
    assert [len(cut(members, groups)) for groups in (256, 10_000)] == [1, 1]
    assert len(cut(members, 10_000, shard_bytes=20_000_000)) == 9
    # and the time that one task takes: 2,000 of 50 megapixels are 18 minutes
    assert len(cut(photos(2000, 5000, 10_000), 10_000)) == 4


@settings(max_examples=60, deadline=None)
@given(members=arrivals(), size=st.integers(1, 4))
@pytest.mark.slow
def test_balancing_loses_nothing_and_keeps_every_limit(members: list[Reference], size: int) -> None:
    config = dataclasses.replace(CONFIG, balance_step=size)
    plan, plain = plan_group(7, members, config, None), plan_group(7, members, CONFIG, None)
    assert Counter(placed(plan)) == Counter(placed(plain))
    assert plan.chunks == plain.chunks
    assert plan == plan_group(7, members[::-1], config, None)
    for shard, rows in zip(plan.listed, plan.shards, strict=True):
        sequences = Counter(row.sequence for row in rows)
        tokens: Counter[int] = Counter()
        for row in rows:
            tokens[row.sequence] += row.grid_t * row.grid_h * row.grid_w
        assert set(sequences) == set(range(shard.num_sequences))
        assert max(sequences.values()) <= config.max_segments and max(tokens.values()) <= config.sequence_length


def planned_groups(
    config: PlanConfig, members: list[Reference], num_groups: int
) -> tuple[list[GroupPlan], list[GroupPlan]]:
    """Returns the plans of so many groups, and those of their rests."""
    groups = [plan_group(n, members[n::num_groups], config, None, num_groups) for n in range(num_groups)]
    rests: dict[int, list[Reference]] = {}
    for number, plan in enumerate(groups):
        rests.setdefault(rest_group(number, num_groups, config), []).extend(plan.rest)
    return groups, [
        plan_group(number, rest[::-1], config, None, num_groups, of_rests=True) for number, rest in rests.items()
    ]


@pytest.mark.parametrize("step", [None, 4])
@pytest.mark.slow_beyond(1)
def test_the_rests_of_groups_are_planned_together_and_nothing_is_lost(step: int | None) -> None:
    config = PlanConfig(sequence_length=4096, group_size=500, resolution_slack=0, balance_step=step)
    drawn = random.Random(0)
    members = [make_reference(f"{n}", (1, drawn.randint(2, 16), drawn.randint(2, 16))) for n in range(8000)]
    groups, rests = planned_groups(config, list(members), 16)
    assert [plan.group for plan in rests] == [16]
    assert rests[0].rest == []
    every = groups + rests
    assert sorted(key for plan in every for key, *_ in placed(plan)) == sorted(m.example.source.key for m in members)
    chunks = [chunk for plan in every for chunk in plan.chunks]
    planned = sum(chunk.num_sequences for chunk in chunks)
    assert planned == sum(shard.num_sequences for plan in every for shard in plan.listed)
    assert all(chunk.bound <= chunk.num_sequences for chunk in chunks)
    # half a sequence of each of 16 groups would be 8 more than all need together, the spare tenths are 1.6
    assert planned <= -(-sum(m.num_tokens for m in members) // 4096) + 3
    alone = [plan_group(n, list(members[n::16]), config, None) for n in range(16)]
    assert planned < sum(len({row.sequence for row in rows}) for plan in alone for rows in plan.shards) - 3
    assert all(plan.rest == [] for plan in alone), "where there is one group, it has no rest"


def test_the_emptiest_sequence_of_a_group_is_left_over_where_segments_bind() -> None:
    # 100 to a group, 64 to a sequence, and tokens for many more; 40 of 100 tokens fill no sequence of 4,096 quite
    config = PlanConfig(sequence_length=4096, max_segments=64, resolution_slack=0)
    members: list[Reference] = [make_reference(f"{n}", (1, 2, 5)) for n in range(800)]
    groups, rests = planned_groups(config, members, 8)
    assert [len(plan.rest) for plan in groups] == [36] * 8
    assert sum(shard.num_sequences for plan in groups + rests for shard in plan.listed) == 8 + 5
    # of 100 tokens 81 would be two sequences, and are three: the third is left over, too
    members = [make_reference(f"{n}", (1, 10, 10)) for n in range(800)]
    groups, rests = planned_groups(config, members, 8)
    assert {len(plan.rest) for plan in groups} == {20}


@pytest.mark.slow
def test_what_is_left_over_keeps_the_size_it_asked_for() -> None:
    config = PlanConfig(sequence_length=256, group_size=2000, resolution_slack=0.1, balance_step=16)
    drawn = random.Random(0)
    members = []
    for number in range(3000):
        example = make_example(f"{number}.jpg", height=drawn.randint(200, 900), width=drawn.randint(200, 900))
        members.append(sample(example, 0, config.policy))
    groups, rests = planned_groups(config, members, 2)
    requested = {member.example.source.key: member for member in members}
    for plan in groups:
        assert plan.rest
        assert all(reference == requested[reference.example.source.key] for reference in plan.rest)
    moved = [
        row.key
        for plan in groups + rests
        for rows in plan.shards
        for row in rows
        if (row.grid_t, row.grid_h, row.grid_w) != requested[row.key].grid
    ]
    assert 0 < len(moved) == sum(chunk.num_moved for plan in groups + rests for chunk in plan.chunks)


def test_groups_store_even_steps_alone_and_the_rests_make_more_of_them() -> None:
    config = PlanConfig(sequence_length=1024, group_size=800, resolution_slack=0, balance_step=8)
    drawn = random.Random(0)
    # a few examples fill a sequence almost alone: in one group they make no step
    members: list[Reference] = [
        make_reference(f"{n}", (1, 31, 31) if n % 40 == 0 else (1, drawn.randint(2, 14), drawn.randint(2, 14)))
        for n in range(8000)
    ]
    groups, rests = planned_groups(config, members, 10)
    for plan in groups:
        costs: Counter[tuple[int, int]] = Counter()
        for number, rows in enumerate(plan.shards):
            for row in rows:
                costs[number, row.sequence] += (row.grid_h * row.grid_w) ** 2
        assert len(costs) % 8 == 0
        ordered = [costs[at] for at in sorted(costs)]
        for start in range(0, len(ordered), 8):
            step = ordered[start : start + 8]
            assert max(step) * 8 <= 1.02 * sum(step)
    assert all(plan.rest for plan in groups)
    num_left = sum(len(plan.rest) for plan in groups)
    assert num_left == sum(len(rows) for plan in rests for rows in plan.shards)


def test_stored_groups_cost_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "FEW_EXAMPLES", 400)  # one shard
    lengths = [1 + n * n % 12 for n in range(400)]
    members = [make_reference(f"{n}", (1, 1, length)) for n, length in enumerate(lengths)]
    config = dataclasses.replace(CONFIG, max_segments=9, group_size=1000, shard_bytes=10**6, views=1)

    def worst(config: PlanConfig) -> float:
        [rows] = plan_group(0, members, config, None).shards
        costs: Counter[int] = Counter()
        for row in rows:
            costs[row.sequence] += row.grid_w**2
        runs = [[costs[n] for n in range(start, start + 8)] for start in range(0, len(costs) - 7, 8)]
        return max(max(run) * len(run) / sum(run) for run in runs)

    assert worst(dataclasses.replace(config, balance_step=8)) < 1.2 < 1.5 < worst(config)


def test_sequences_are_stored_in_an_order_that_the_seed_decides() -> None:
    members = [make_reference(f"{n}", (3, 2, 2)) for n in range(12)]
    orders = set()
    for seed in range(3):
        config = dataclasses.replace(CONFIG, group_size=100, shard_bytes=10**6, views=1, seed=seed)
        orders.add(tuple(name for name, *_ in placed(plan_group(0, members, config, None))))
    assert len(orders) == 3
    assert all(sorted(order) == sorted(f"{n}" for n in range(12)) for order in orders)


def labelled(key: str, *labels: str) -> Reference:
    """Returns a reference whose source has labels."""
    reference = make_reference(key)
    source = reference.example.source._replace(facts=Facts(labels=labels))
    return reference._replace(example=reference.example._replace(source=source))


def test_labels_are_the_numbers_of_their_classes() -> None:
    members = [labelled("1.jpg", "dog"), labelled("2.jpg", "cat", "dog"), labelled("3.jpg", "deep")]
    config = dataclasses.replace(CONFIG, views=1)
    rows = plan_group(0, members, config, ("cat", "deep", "dog")).shards[0]
    assert {row.key: row.labels for row in rows} == {"1.jpg": (2,), "2.jpg": (0, 2), "3.jpg": (1,)}
    assert all(row.labels == () for row in plan_group(0, members, config, None).shards[0])
    alone = plan_group(0, [make_reference("1.jpg")], config, ("cat",)).shards[0]
    assert [row.labels for row in alone] == [()]


@settings(max_examples=40, deadline=None)
@given(key=keys, seed=st.integers(0, 9), groups=st.integers(1, 50))
def test_a_group_depends_on_seed_and_key_alone(key: str, seed: int, groups: int) -> None:
    hashed = xxhash.xxh3_64_intdigest(str(seed).encode() + b"\0" + key.encode())
    assert group_of(key, seed, groups) == hashed % groups


@given(st.integers(0, 10**10))
def test_buckets_are_enough_for_many_cores_and_give_a_group_no_crumbs(inputs: int) -> None:
    buckets = num_buckets(inputs)
    assert 1 <= buckets <= 4096
    assert buckets <= max(1, inputs)
    if inputs >= 1024:
        assert buckets >= 64
    if inputs <= 10**6:
        assert inputs <= 4096 * max(64, buckets)
    if inputs <= 10**8:
        # rows of a part: what a bucket has for a group
        assert inputs >= 6 * buckets * (inputs // 16_384)


@settings(max_examples=15, deadline=None)
@given(members=arrivals())
def test_a_plan_survives_its_file(tmp_path_factory: pytest.TempPathFactory, members: list[Reference]) -> None:
    folder = str(tmp_path_factory.mktemp("out"))
    os.mkdir(f"{folder}/_plan")
    plans = [plan_group(group, members[group::2], CONFIG, None) for group in (0, 1)]
    for plan in reversed(plans):
        save_group(folder, plan)
    assert list(read_summaries(folder, [0])) == [
        s for plan in plans for s in numbered(view.summary for view in plan.views)
    ]
    assert [shard for plan in plans for shard in plan.listed] == [
        shard for summary in read_summaries(folder, [0]) for shard in summary.shards
    ]
    for plan in plans:
        assert read_group(folder, (0, plan.group), 2) == list(numbered(view.summary for view in plan.views))
        for shard, rows in zip(plan.listed, plan.shards, strict=True):
            assert read_shard_rows(folder, shard) == rows


def test_the_bytes_of_a_plan_depend_on_nothing_but_the_plan(tmp_path: Path) -> None:
    members = [make_reference(f"{n}", (1, 2, 2)) for n in range(7)]
    contents = []
    for name, arrived in (("a", members), ("b", members[::-1])):
        (tmp_path / name / "_plan").mkdir(parents=True)
        save_group(str(tmp_path / name), plan_group(0, arrived, CONFIG, None))
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name / "_plan").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"part-000-00000-000.parquet", "part-000-00000-001.parquet", "parts-000.json"}


ROWS = plan_group(0, [make_reference("a/b.mp4", (2, 1, 1)), make_reference("c.jpg")], CONFIG, None).shards[0]
# another value for every column of the plan
OTHER: dict[str, Any] = dict.fromkeys(PLAN_SCHEMA.names, 77) | {
    "example_id": "other",
    "key": "other",
    "path": b"other",
    "frame_pts": (0, 99),
    "random_access_pts": (0,),
    "extra": "{}",
}


def test_a_fingerprint_ignores_where_the_files_are() -> None:
    moved = [row._replace(root=5, path=b"elsewhere") for row in ROWS]
    assert fingerprint(moved, CONFIG, {"numpy": "2"}) == fingerprint(ROWS, CONFIG, {"numpy": "2"})
    config = BuildConfig(**dataclasses.asdict(CONFIG), resume=True)
    others = dataclasses.replace(config, workers=3, resume=False, overwrite=True, max_reject_fraction=1.0)
    assert fingerprint(ROWS, config, {}) == fingerprint(ROWS, others, {}) == fingerprint(ROWS, CONFIG, {})


@pytest.mark.parametrize("column", [name for name in PLAN_SCHEMA.names if name not in ("root", "path")])
def test_a_fingerprint_changes_with_every_other_column(column: str) -> None:
    changed = [ROWS[0], ROWS[1]._replace(**{column: OTHER[column]})]
    assert getattr(ROWS[1], column) != OTHER[column]
    assert fingerprint(changed, CONFIG, {}) != fingerprint(ROWS, CONFIG, {})


def test_a_fingerprint_changes_with_config_versions_and_order() -> None:
    seen = {fingerprint(ROWS, CONFIG, {}), fingerprint(ROWS[::-1], CONFIG, {}), fingerprint(ROWS[:1], CONFIG, {})}
    seen |= {fingerprint(ROWS, CONFIG, {"numpy": version}) for version in ("2.0", "2.1")}
    seen |= {
        fingerprint(ROWS, dataclasses.replace(CONFIG, **change), {})
        for change in ({"seed": 4}, {"fps": 9.0}, {"mean": (0.4, 0.5, 0.5)}, {"max_segments": 5}, {"exclude": ("x",)})
    }
    assert len(seen) == 10
