"""Promises of the losses: real things are counted, slots are not, and nothing to count is 0."""

import math
from typing import Any

import pytest
import torch

from patchpack.trainer.losses import classification_loss, multilabel_loss, reconstruction_loss


def test_classification_counts_labelled_segments_only() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, -1, 2, -1], [-1, -1, 1, -1]])
    weights = torch.tensor([[0.25, 7.0, 0.5, 0.0], [1.0, 1.0, 0.125, 1.0]])
    loss = classification_loss(logits, labels, weights)
    wanted = 0.0
    for b, s in ((0, 0), (0, 2), (1, 2)):
        scores = logits[b, s].tolist()
        wanted += float(weights[b, s]) * (math.log(sum(math.exp(x) for x in scores)) - scores[labels[b, s]])
    # less than one in all, and a mean nevertheless
    assert loss.count == 0.875 and loss.mean.item() == pytest.approx(wanted / 0.875, rel=1e-5)
    loss.mean.backward()
    assert ((logits.grad != 0).any(dim=2) == (labels >= 0)).all()


def test_a_yes_or_no_of_every_class_for_segments_of_several_labels() -> None:
    logits = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    # the second says one label twice, the third has none, the last is no segment
    labels = torch.tensor([[[3, 0], [2, 2]], [[-1, -1], [1, -1]]])
    weights = torch.tensor([[1.0, 0.5], [1.0, 2.0]])
    loss = multilabel_loss(logits, labels, weights)
    wanted = 0.0
    for b, s in ((0, 0), (0, 1), (1, 1)):
        yes = set(labels[b, s].tolist()) - {-1}
        for k, x in enumerate(logits[b, s].tolist()):
            p = 1 / (1 + math.exp(-x))
            wanted -= float(weights[b, s]) * math.log(p if k in yes else 1 - p)
    assert loss.count == 3.5 and loss.mean.item() == pytest.approx(wanted / 3.5, rel=1e-5)
    loss.mean.backward()
    assert ((logits.grad != 0).any(dim=2) == (labels[..., 0] >= 0)).all()


@pytest.mark.parametrize(
    "loss_of", [classification_loss, lambda logits, labels, w: multilabel_loss(logits, labels[..., None], w)]
)
def test_a_batch_without_any_label_gives_zero_and_zero_gradients(loss_of: Any) -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 4), -1), torch.ones(2, 4))
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
