"""Promises of the losses: real things are counted, slots are not, and nothing to count is 0."""

import math

import pytest
import torch

from patchpack.trainer.losses import classification_loss, reconstruction_loss


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
