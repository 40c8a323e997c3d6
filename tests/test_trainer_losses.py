"""Promises of the losses: real things are counted, slots are not, and nothing to count is 0."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchpack.trainer.losses import classification_loss, draw_mask, reconstruction_loss


def test_classification_counts_labelled_segments_only() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, -1, 2, -1], [-1, -1, 1, -1]])
    loss = classification_loss(logits, labels)
    wanted = 0.0
    for b, s in ((0, 0), (0, 2), (1, 2)):
        scores = logits[b, s].tolist()
        wanted += math.log(sum(math.exp(x) for x in scores)) - scores[labels[b, s]]
    assert loss.count == 3 and loss.mean.item() == pytest.approx(wanted / 3, rel=1e-5)
    loss.mean.backward()
    assert ((logits.grad != 0).any(dim=2) == (labels >= 0)).all()


def test_a_batch_without_any_label_gives_zero_and_zero_gradients() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    loss = classification_loss(logits, torch.full((2, 4), -1))
    assert loss.mean.item() == 0 and loss.count == 0
    loss.mean.backward()
    assert (logits.grad == 0).all()


def test_reconstruction_counts_hidden_tokens_only() -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = torch.randn(2, 2, 5, 6, generator=generator)
    mask = torch.tensor([[True, False, True, False, False], [False, False, False, True, False]])
    loss = reconstruction_loss(found, wanted, mask)
    errors = [sum((found[b, i] - wanted[b, i]).tolist()[p] ** 2 for p in range(6)) / 6 for b, i in mask.nonzero()]
    assert loss.count == 3 and float(loss.mean) == pytest.approx(sum(errors) / 3, rel=1e-5)
    found[~mask] = float("nan")  # what is not hidden does not reach the loss
    assert float(reconstruction_loss(found, wanted, mask).mean) == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_no_hidden_token_gives_zero() -> None:
    loss = reconstruction_loss(torch.randn(1, 3, 2), torch.randn(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))
    assert float(loss.mean) == 0


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=3),
    st.fractions(0, 1, max_denominator=8),
    st.integers(0, 9),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_the_mask_hides_the_same_share_of_every_segment_and_no_padding(
    lengths: list[list[int]], share: Fraction, seed: int, align: int
) -> None:
    # segments that start at multiples leave padding between them
    room, slots = max(sum(-(-length // align) * align for length in each) for each in lengths) + 2, 6
    segment_ids = torch.zeros(len(lengths), room, dtype=torch.int32)
    lengths_BS = torch.zeros(len(lengths), slots, dtype=torch.int32)
    for b, each in enumerate(lengths):
        ids: list[int] = []
        for number, length in enumerate(each, start=1):
            ids += [number] * length + [0] * (-length % align)
        segment_ids[b, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        lengths_BS[b, : len(each)] = torch.tensor(each, dtype=torch.int32)
    share_float = float(share)
    mask = draw_mask(segment_ids, lengths_BS, share_float, torch.Generator().manual_seed(seed))
    assert mask.dtype == torch.bool and mask.shape == segment_ids.shape
    for b, each in enumerate(lengths):
        assert not mask[b][segment_ids[b] == 0].any()
        for number, length in enumerate(each, start=1):
            assert int(mask[b][segment_ids[b] == number].sum()) == math.floor(length * share_float)
    again = draw_mask(segment_ids, lengths_BS, share_float, torch.Generator().manual_seed(seed))
    assert torch.equal(mask, again)


def test_the_mask_hides_every_token_equally_often() -> None:
    segment_ids = torch.tensor([[1] * 4 + [2] * 6 + [0] * 2]).repeat(4000, 1)
    lengths = torch.tensor([[4, 6]]).repeat(4000, 1)
    often = draw_mask(segment_ids, lengths, 0.5, torch.Generator().manual_seed(0)).float().mean(dim=0)
    # 0.5 +- 4 standard deviations of 4,000 draws
    assert (often[:10] - 0.5).abs().max() < 4 * 0.5 / math.sqrt(4000)
    assert (often[10:] == 0).all()
