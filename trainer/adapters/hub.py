"""Vision models of transformers over packed sequences: `--model hf:FOLDER`, SigLIP 2's encoder and Qwen2.5-VL's tower.

SigLIP 2 is embedded and pooled by example, its blocks see packed rows. Qwen's tower packs by itself, from the grids alone: it is given
the examples of a batch one after the other, in the order of its merged patches, and no padding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.adapters.by_example import ByExample, PlanMask, alike
from patchpack.trainer.attention import Plan
from patchpack.trainer.model import Model, Output
from patchpack.trainer.transformer import linear


def of_hub(name: str, pretrained: bool, layout: Layout, limits: Limits, num_classes: int, backend: str) -> Model:
    """Returns the model that a config names, see `adapters.make_adapted`."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--model hf:{name}: {said}; it is a folder with config.json, or a name of the hub") from error
    own = getattr(config, "vision_config", config)
    kinds: dict[str, Any] = {
        "siglip2_vision_model": Siglip2VisionModel,
        "qwen2_5_vl": Qwen2_5_VisionTransformerPretrainedModel,
    }
    kind = kinds.get(own.model_type) or kinds.get(f"{own.model_type}".removesuffix("_vision"))
    if kind is None:
        raise ValueError(
            f"--model hf:{name}: {own.model_type}; what is known is {', '.join(kinds)}; a model of one's own: docs/adapters.md"
        )
    try:
        backbone = _weights(name, config, kind) if pretrained else kind(own)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"--model hf:{name}: {said}; weights are read from safetensors, which run no code; convert them, or leave out --pretrained"
        ) from error
    adapter: Any = SigLIP2 if kind is Siglip2VisionModel else QwenTower
    made: Model = adapter(backbone, layout, limits, num_classes, backend)
    return made


def _weights(name: str, config: Any, kind: Any) -> Any:
    """Returns the model with the library's weights: of a model of images and text the part that sees, read with the whole of it.

    Its part alone would be read without an error where its names in the file differ, and be random.
    """
    if not hasattr(config, "vision_config"):
        return kind.from_pretrained(name, use_safetensors=True)
    whole = AutoModel.from_pretrained(name, use_safetensors=True)
    return next(part for part in whole.modules() if isinstance(part, kind))


class SigLIP2(ByExample):
    """A `Siglip2VisionModel` and a linear layer to the classes."""

    blocks_at = "backbone.encoder.layers"

    def __init__(
        self, backbone: Siglip2VisionModel, layout: Layout, limits: Limits, num_classes: int, backend: str
    ) -> None:
        """Takes the model over; raises ValueError where the tokens of the layout are not its patches."""
        super().__init__(layout, limits, backend, int(backbone.config.hidden_size))
        _check_tubelet(layout, (1, backbone.config.patch_size, backbone.config.patch_size))
        # fused attention, which the mask that is a plan needs
        backbone.set_attn_implementation("sdpa")
        self.backbone, self.classify = backbone, linear(backbone.config.hidden_size, num_classes, bias=True)

    def embed_examples(self, pixels_NTP: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """See `ByExample`."""
        shapes_N2 = torch.tensor([grid[1:]], device=pixels_NTP.device).expand(len(pixels_NTP), 2)
        embedded: torch.Tensor = self.backbone.embeddings(pixels_NTP, shapes_N2)
        return embedded

    def encode(self, x_BLD: torch.Tensor, plan: Plan) -> torch.Tensor:
        """See `ByExample`."""
        mask = PlanMask.of(plan)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask)
        features_BLD: torch.Tensor = self.backbone.post_layernorm(x_BLD)
        return features_BLD

    def pool_examples(self, x_NMD: torch.Tensor) -> torch.Tensor:
        """See `ByExample`."""
        pooled: torch.Tensor = self.backbone.head(x_NMD) if self.backbone.use_head else x_NMD.mean(dim=1)
        return pooled


class QwenTower(ByExample):
    """A `Qwen2_5_VisionTransformerPretrainedModel`, the mean of an example's merged patches, and a linear layer to the classes."""

    def __init__(
        self,
        backbone: Qwen2_5_VisionTransformerPretrainedModel,
        layout: Layout,
        limits: Limits,
        num_classes: int,
        backend: str,
    ) -> None:
        """Takes the model over; raises ValueError where the tokens of the layout are not its patches, or grids cannot be merged."""
        super().__init__(layout, limits, backend, int(backbone.config.hidden_size))
        own, self.merge = backbone.config, int(backbone.spatial_merge_size)
        _check_tubelet(layout, (own.temporal_patch_size, own.patch_size, own.patch_size))
        if layout.grid_multiple % self.merge:
            raise ValueError(
                f"a grid multiple of {layout.grid_multiple}: the model merges {self.merge} x {self.merge} patches; "
                f"build with --grid-multiple {self.merge}"
            )
        self.backbone, self.classify = backbone, linear(own.out_hidden_size, num_classes, bias=True)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Returns the merged patches of all examples, one after the other, in a batch of one; pooled segments; and classes."""
        size, slots = batch["lengths"].shape
        groups = list(alike(batch, self._runs(batch), 0))
        if not groups:
            return self._of_nothing(batch)
        tokens_NP = batch["tokens"].flatten(0, 1)
        parts = [self._prepared(tokens_NP[group.from_NT], group.grid).flatten(0, 1) for group in groups]
        grids = [group.grid for group in groups for _ in range(len(group.slots_N))]
        seen = self.backbone(torch.cat(parts), grid_thw=torch.tensor(grids, device=tokens_NP.device))
        features_ND: torch.Tensor = seen.pooler_output
        pooled_ND, start = features_ND.new_zeros(size * slots, features_ND.shape[-1]), 0
        for group in groups:
            count, (t, h, w) = len(group.slots_N), group.grid
            end = start + count * t * (h // self.merge) * (w // self.merge)
            pooled_ND = pooled_ND.index_copy(
                0, group.slots_N, features_ND[start:end].unflatten(0, (count, -1)).mean(dim=1)
            )
            start = end
        pooled_BSD = pooled_ND.view(size, slots, -1)
        if self.classify is None:
            raise AssertionError("it has a head")
        return Output(features_ND[None], pooled_BSD, self.classify(pooled_BSD))

    def _prepared(self, tokens_NTP: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Returns pixels in the order of the model: patches that are merged together, and of each the channels first."""
        t, h, w = grid
        merge, device = self.merge, tokens_NTP.device
        order = torch.arange(t * h * w, device=device).view(t, h // merge, merge, w // merge, merge)
        pixels_NTP = self.pixels.normalise(tokens_NTP)[:, order.permute(0, 1, 3, 2, 4).flatten()]
        channels_first: torch.Tensor = pixels_NTP.unflatten(-1, (-1, self.layout.channels)).transpose(-1, -2)
        return channels_first.flatten(-2)


def _check_tubelet(layout: Layout, patch: tuple[int, int, int]) -> None:
    if layout.tubelet != patch:
        raise ValueError(
            f"tubelet {','.join(map(str, layout.tubelet))}: the model's patches are {','.join(map(str, patch))} (frames, height, width); "
            f"build with --tubelet {','.join(map(str, patch))}"
        )
