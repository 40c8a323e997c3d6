"""Lets timm and transformers be imported beside a torch without CUDA.

Both import torchvision where it is installed, whose wheels are built for CUDA: beside a torch for CPUs its operators are not loaded,
and registering their shapes fails. Nothing here uses them, so that their names are enough.
"""

import pytest
import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def need_other_libraries() -> None:
    """Skips the module's tests where the extra `adapters` is not installed."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in ("timm", "transformers"):
        pytest.importorskip(name, reason="the extra adapters is not installed")
