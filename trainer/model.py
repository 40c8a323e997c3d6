"""What the training loop asks of a model: a batch in, what it says out, and what a step makes smaller."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer import losses


class Hidden(NamedTuple):
    """What a model without classes says of the tokens that it did not see, moved to the front of each row.

    Attributes:
        predicted_BQP: normalised pixels.
        target_BQP: what they were.
        is_there_BQ: whether there is a token.
    """

    predicted_BQP: torch.Tensor
    target_BQP: torch.Tensor
    is_there_BQ: torch.Tensor


class Output(NamedTuple):
    """What a model says of a batch.

    Attributes:
        features_BLD: every token that it saw, or of those it was pooled to.
        pooled_BSD: every segment; zeros where there is none.
        logits_BSK: classes of every segment, or None for a model without classes.
        hidden: of a model that reconstructs and was given ranks, or None.
        pairs: of a model of images and captions, or None.
    """

    features_BLD: torch.Tensor
    pooled_BSD: torch.Tensor
    logits_BSK: torch.Tensor | None
    hidden: Hidden | None = None
    pairs: losses.Pairs | None = None


class Model(nn.Module):
    """A model of packed sequences; called with a batch of `PackedShards` on its device, it returns an Output.

    Attributes:
        layout: whose tokens it reads.
        limits: the most that its batches have.
        backend: of attention.
        drop_share: of each segment's tokens that it does not look at; batches then have `ranks` of `dropping.draw_ranks`.
        classify: from pooled segments to classes, or None.
        is_multilabel: whether classes are judged each by itself, and a segment may have several.
        needs_ranks: whether its loss is of tokens that it does not look at.
        nothing: what is said of a batch in which nothing counts.
    """

    classify: nn.Module | None
    is_multilabel = False
    needs_ranks = False
    nothing = "no segment has a label"

    def __init__(self, layout: Layout, limits: Limits, backend: str, drop_share: float) -> None:
        super().__init__()
        self.layout, self.limits, self.backend, self.drop_share = layout, limits, backend, drop_share

    def check(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks a batch, on the CPU, before it is looked at.

        Raises:
            ValueError: it has more or longer segments than the model was made for.
        """
        for name, values, most in (
            ("segments", batch["num_segments"], self.limits["max_segments"]),
            ("tokens of one segment", batch["lengths"], self.limits["max_segment_tokens"]),
        ):
            if int(values.max()) > most:
                raise ValueError(
                    f"{int(values.max())} {name} in a batch: the model was made for {most}; make it with the limits of all datasets "
                    "that it reads"
                )

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns how many things the loss of a batch is the sum over: labelled segments, by their weights."""
        return losses.label_weights(batch["labels"], batch["weights"]).sum()

    def flops(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the useful FLOPs of a step on a batch, forward and backward: of real tokens, and of pairs inside segments."""
        raise NotImplementedError

    def loss(self, output: Output, batch: Mapping[str, torch.Tensor]) -> losses.Loss:
        """Returns what is minimised: cross-entropy over labelled segments, or the error of hidden pixels."""
        if output.logits_BSK is not None and self.is_multilabel:
            labels_BSM = batch.get("all_labels", batch["labels"][..., None])
            return losses.multilabel_loss(output.logits_BSK, labels_BSM, batch["weights"])
        if output.logits_BSK is not None:
            return losses.classification_loss(output.logits_BSK, batch["labels"], batch["weights"])
        if output.hidden is None:
            raise ValueError("a model without classes learns from what it does not see; give it ranks and a drop_share")
        return losses.reconstruction_loss(*output.hidden)


def token_sizes(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the grid of each token's example, (B, L, 3) of (t, h, w); 1 in padding."""
    slots_BL = (batch["segment_ids"].long() - 1).clamp(min=0)
    return torch.take_along_dim(batch["grids"], slots_BL[..., None], 1).clamp(min=1)
