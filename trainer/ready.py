"""What attention kernels of others and models of others ask for, made from a batch on its device, on request.

| name | shape | what |
| --- | --- | --- |
| `cu_seqlens` | (B S + 1,) int32 | where each segment begins among real tokens, `tokens[segment_ids > 0]`, and the end of the last, repeated |
| `segment_mask` | (B, S) bool | which slots hold a segment |
| `attention_mask` | (B, 1, L, L) bool | tokens of one segment attend to each other, and padding to padding, so that no row is empty |
| `pixels` | (B, L, P) float | tokens normalised by the dataset's mean and std |
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from patchpack.schemas import Layout
from patchpack.trainer.embed import Pixels
from patchpack.trainer.slots import Batch


def cu_seqlens(batch: Batch) -> torch.Tensor:
    """Returns the offsets of segments among real tokens, as varlen attention takes them; see the module."""
    lengths = batch["lengths"].flatten()
    # slots behind a row's last segment are empty: the real ones first, in their order, and the end repeated
    order = torch.argsort(lengths == 0, stable=True)
    return F.pad(lengths[order].cumsum(0, dtype=torch.int32), (1, 0))


def segment_mask(batch: Batch) -> torch.Tensor:
    """Returns which slots hold a segment."""
    return batch["lengths"] > 0


def attention_mask(batch: Batch) -> torch.Tensor:
    """Returns which tokens attend to each other."""
    ids = batch["segment_ids"]
    return (ids[:, :, None] == ids[:, None, :])[:, None]


class Ready:
    """Adds what is asked for to batches."""

    def __init__(self, names: Sequence[str], layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        """Takes the names of the module's table; `dtype` is that of `pixels`.

        Raises:
            ValueError: there is nothing of a name, or the tokens are no pixels.
        """
        makers: dict[str, Callable[[Batch], torch.Tensor]] = {
            "cu_seqlens": cu_seqlens,
            "segment_mask": segment_mask,
            "attention_mask": attention_mask,
            "pixels": self._pixels,
        }
        for name in names:
            if name not in makers:
                raise ValueError(
                    f"also {name!r}: nothing of that name; a loader adds {', '.join(makers)}; choose among them"
                )
        self._makers = {name: makers[name] for name in names}
        self._pixels_of = Pixels(layout).to(device) if "pixels" in names else None
        self._dtype = dtype

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with what was asked for."""
        return batch | {name: make(batch) for name, make in self._makers.items()}

    def _pixels(self, batch: Batch) -> torch.Tensor:
        if self._pixels_of is None:
            raise AssertionError("only made where pixels are asked for")
        return self._pixels_of.normalise(batch["tokens"]).to(self._dtype)
