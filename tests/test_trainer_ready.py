"""What loaders add to batches on request, against plain loops."""

import numpy as np
import pytest
import torch
from support.batches import make_batch
from support.synthetic_set import SMALL_LAYOUT, write_set

from patchpack.schemas import Layout
from patchpack.trainer.data import PackedShards
from patchpack.trainer.ready import Ready
from patchpack.trainer.slots import Batch

ALIGNED = Layout(sequence_length=60, max_segments=6, tubelet=(1, 2, 2), align_tokens=4, mean=(0.4, 0.5, 0.6))
CPU = torch.device("cpu")


def made(name: str, batch: Batch, layout: Layout, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return Ready([name], layout, CPU, dtype)(batch)[name]


@pytest.mark.parametrize("layout", [SMALL_LAYOUT, ALIGNED])
def test_cu_seqlens_cut_the_real_tokens_into_segments(layout: Layout) -> None:
    batch = make_batch(layout, 5, seed=3)
    batch["lengths"][2], batch["segment_ids"][2], batch["tokens"][2] = 0, 0, 0  # an empty sequence in the middle
    offsets = made("cu_seqlens", batch, layout)
    assert offsets.dtype == torch.int32 and len(offsets) == 5 * layout.max_segments + 1
    real = batch["tokens"][batch["segment_ids"] > 0]
    due = [
        batch["tokens"][row, start : start + length]
        for row in range(5)
        for start, length in zip(batch["starts"][row].tolist(), batch["lengths"][row].tolist(), strict=True)
        if length
    ]
    assert len(due) > 5
    for number, tokens in enumerate(due):
        assert torch.equal(real[offsets[number] : offsets[number + 1]], tokens)
    assert (offsets[len(due) :] == len(real)).all()


def test_masks_say_what_belongs_together() -> None:
    batch = make_batch(ALIGNED, 3, seed=1)
    slots, pairs = made("segment_mask", batch, ALIGNED), made("attention_mask", batch, ALIGNED)
    assert slots.dtype == pairs.dtype == torch.bool and pairs.shape == (3, 1, 60, 60)
    for row in range(3):
        assert slots[row].tolist() == [number < batch["num_segments"][row] for number in range(6)]
        ids = batch["segment_ids"][row].tolist()
        assert 0 in ids and max(ids) > 1
        assert pairs[row, 0].tolist() == [[one == other for other in ids] for one in ids]


def test_pixels_are_normalised_in_the_dtype_that_is_asked_for() -> None:
    batch = make_batch(ALIGNED, 2)
    channels = batch["tokens"].numpy().reshape(2, 60, 4, 3)
    due = ((channels / 255 - np.array(ALIGNED.mean)) / np.array(ALIGNED.std)).reshape(2, 60, 12)
    assert np.allclose(made("pixels", batch, ALIGNED).numpy(), due, atol=1e-6)
    half = made("pixels", batch, ALIGNED, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and np.allclose(half.float().numpy(), due, atol=0.02)


def test_a_loader_adds_them_to_every_batch(tmp_path: object) -> None:
    write_set(str(tmp_path))
    names = ("cu_seqlens", "segment_mask", "attention_mask", "pixels")
    plain = list(PackedShards(str(tmp_path), batch_size=5))
    more = list(PackedShards(str(tmp_path), batch_size=5, also=names, dtype=torch.float16, device="cpu"))
    assert len(plain) == len(more) == 3
    for one, other in zip(plain, more, strict=True):
        assert other.keys() == one.keys() | set(names)
        assert all(torch.equal(one[name], other[name]) for name in one)
        for name in names:
            assert torch.equal(other[name], made(name, one, SMALL_LAYOUT, torch.float16))
    with pytest.raises(ValueError, match=r"also 'mask': nothing of that name; a loader adds cu_seqlens, .*; choose among them"):  # fmt: skip
        PackedShards(str(tmp_path), batch_size=5, also=["mask"])


def test_static_bounds_are_those_of_the_manifest(tmp_path: object) -> None:
    write_set(str(tmp_path))
    loader = PackedShards(str(tmp_path), batch_size=5)
    limits = loader.manifest.limits[0]
    assert (loader.max_segments, loader.max_seqlen) == (limits["max_segments"], limits["max_segment_tokens"])
    for batch in loader:
        assert batch["lengths"].max() <= loader.max_seqlen and batch["num_segments"].max() <= loader.max_segments


def test_a_check_sees_each_batch_and_its_error_is_that_batch_s(tmp_path: object) -> None:
    write_set(str(tmp_path))

    def check(batch: Batch) -> None:
        seen.append(batch["index"].tolist())
        if len(seen) == 3:
            raise ValueError("the third")

    seen: list[list[int]] = []
    taken = []
    with pytest.raises(ValueError, match="the third"):
        for batch in PackedShards(str(tmp_path), batch_size=2, check=check):
            taken.append(batch["index"].tolist())
    assert len(taken) == 2 and seen[:2] == taken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_device_are_those_of_the_host(tmp_path: object) -> None:
    write_set(str(tmp_path), rows_per_shard=(9, 9, 9))
    names = ("cu_seqlens", "pixels")
    host = list(PackedShards(str(tmp_path), batch_size=2, also=names))
    loader = PackedShards(str(tmp_path), batch_size=2, also=names, device="cuda")
    states = []
    for due, batch in zip(host, loader, strict=True):
        assert all(values.is_cuda and torch.equal(values.cpu(), due[name]) for name, values in batch.items())
        states.append(loader.state_dict()["sequence"])
    # a state names the batch behind the one in use, not the one that is copied meanwhile
    assert states == [*range(2, 27, 2), 0]
