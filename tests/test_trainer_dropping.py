"""Promises of dropping in the model: exact counts, one draw a (seed, step, sequence, place), nothing lost or doubled."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import make_batch, segments_of

from patchpack.schemas import Layout
from patchpack.trainer.attention import Runs
from patchpack.trainer.dropping import Kept, draw_ranks, keep, num_kept

LAYOUTS = [Layout(60, 5, (1, 1, 1)), Layout(64, 5, (1, 1, 1), align_tokens=8)]
LIMITS = {"max_segments": 5, "max_segment_tokens": 48, "max_grid": [3, 4, 4], "max_labels": 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_are_an_order_of_each_segment(layout: Layout) -> None:
    batch = make_batch(layout)
    ranks = draw_ranks(batch, 0, 7)
    for row, _, start, length in segments_of(batch):
        assert sorted(ranks[row, start : start + length].tolist()) == list(range(length))


def test_draws_depend_on_seed_step_and_sequence_alone() -> None:
    batch = make_batch(LAYOUTS[0], size=6)
    ranks = draw_ranks(batch, 3, 5)
    turned = {name: tensor.flip(0)[:4] for name, tensor in batch.items()}
    real = batch["segment_ids"] != 0
    assert torch.equal(draw_ranks(turned, 3, 5)[real.flip(0)[:4]], ranks.flip(0)[:4][real.flip(0)[:4]])
    for seed, step in ((3, 6), (4, 5)):
        assert not torch.equal(draw_ranks(batch, seed, step)[real], ranks[real])


def test_every_token_comes_first_equally_often() -> None:
    batch = make_batch(LAYOUTS[0], size=1)
    (row, _, start, length), *_ = segments_of(batch)
    firsts = torch.stack([draw_ranks(batch, 0, step)[row, start : start + length] == 0 for step in range(4000)])
    counts = firsts.sum(dim=0).double()
    # chi-squared of length - 1 degrees of freedom, far beyond its 99.9 % point
    assert ((counts - 4000 / length) ** 2 / (4000 / length)).sum() < length + 5 * math.sqrt(2 * length) + 10


@given(st.integers(0, 10_000), st.fractions(0, Fraction(15, 16), max_denominator=16), st.sampled_from(LAYOUTS))
@settings(deadline=None)
def test_exactly_so_many_are_kept_and_each_is_where_it_came_from(seed: int, share: Fraction, layout: Layout) -> None:
    batch = make_batch(layout, seed=seed)
    kept = keep(batch, Runs.of(batch, layout, LIMITS), draw_ranks(batch, seed, 1), float(share))
    counts = num_kept(batch["lengths"].long(), float(share))
    ids = kept.runs.segment_ids()
    moved = kept.of(batch["segment_ids"])
    assert torch.equal(torch.where(kept.is_there_BQ, moved, 0).long(), ids)
    for row, slot, start, length in segments_of(batch):
        due = max(1, length - math.floor(length * float(share)))
        places = kept.index_BQ[row][ids[row] == slot + 1].tolist()
        assert len(places) == due == int(counts[row, slot])
        assert places == sorted(set(places)) and start <= places[0] and places[-1] < start + length
        assert kept.is_kept_BL[row, start : start + length].sum() == due
    assert int(kept.is_there_BQ.sum()) == int(counts.sum()) == int(kept.is_kept_BL.sum())


def test_what_is_moved_to_the_front_is_all_there_is() -> None:
    is_kept = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    kept = Kept.moved(is_kept, 4, None)
    assert kept.index_BQ.tolist() == [[1, 2, 4, 0], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert kept.is_there_BQ.sum(dim=1).tolist() == [3, 0, 4]
