"""timm's NaFlexViT over packed sequences: `--model timm:naflexvit_base_patch16_gap`, or one of your own.

Embedding, positions (however they are resized), class and register tokens, blocks and pooling are timm's.
"""

import timm
import torch
from timm.models.naflexvit import NaFlexVit
from torch import nn

from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.adapters.by_example import ByExample, PlanMask
from patchpack.trainer.attention import Plan


class NaFlexViT(ByExample):
    """A `timm.models.naflexvit.NaFlexVit`; its head gives the classes."""

    def __init__(self, backbone: NaFlexVit, layout: Layout, limits: Limits, backend: str) -> None:
        """Takes the model over.

        Raises:
            ValueError: the tokens of the layout are not its patches, or it turns queries and keys (RoPE).
        """
        super().__init__(layout, limits, backend, int(backbone.embed_dim))
        (t, h, w), patch = layout.tubelet, tuple(backbone.embeds.patch_size)
        if t != 1 or (h, w) != patch:
            raise ValueError(
                f"tubelet {layout.tubelet}: the model's patches are {patch[0]} x {patch[1]} px of images; "
                f"build with --tubelet 1,{patch[0]},{patch[1]}"
            )
        if getattr(backbone, "rope", None) is not None:
            raise ValueError("a NaFlexViT with RoPE: its angles are of a row; choose one with a table of positions")
        self.backbone = backbone
        self.num_own = backbone.num_prefix_tokens
        self.is_channels_last = getattr(backbone.embeds, "channels_last", True)
        # under one name, so that a checkpoint holds it once
        self.classify: nn.Module = backbone.head
        backbone.head = nn.Identity()

    @classmethod
    def named(
        cls, name: str, pretrained: bool, layout: Layout, limits: Limits, num_classes: int, backend: str
    ) -> "NaFlexViT":
        """Returns the model of that name, see `adapters.make_adapted`."""
        try:
            backbone = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        except RuntimeError as error:
            # what timm raises for an unknown name
            raise ValueError(f"--model timm:{name}: {error}; timm.list_models('*naflexvit*') names them") from error
        if not isinstance(backbone, NaFlexVit):
            raise ValueError(
                f"--model timm:{name}: a {type(backbone).__name__}; it reads images of one size, and NaFlexVit any; "
                "timm.list_models('*naflexvit*') names them"
            )
        return cls(backbone, layout, limits, backend)

    def embed_examples(self, pixels_NTP: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """See `ByExample`."""
        _, h, w = grid
        if not self.is_channels_last:
            pixels_NTP = pixels_NTP.unflatten(-1, (-1, self.layout.channels)).transpose(-1, -2).flatten(-2)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        coordinates_T2 = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(pixels_NTP.device)
        embedded: torch.Tensor = self.backbone.embeds(
            pixels_NTP, patch_coord=coordinates_T2.expand(len(pixels_NTP), -1, -1)
        )[0]
        normed: torch.Tensor = self.backbone.norm_pre(embedded)
        return normed

    def encode(self, x_BLD: torch.Tensor, plan: Plan) -> torch.Tensor:
        """See `ByExample`."""
        mask = PlanMask.of(plan)
        for block in self.backbone.blocks:
            x_BLD = block(x_BLD, attn_mask=mask)
        features_BLD: torch.Tensor = self.backbone.norm(x_BLD)
        return features_BLD

    def pool_examples(self, x_NMD: torch.Tensor) -> torch.Tensor:
        """See `ByExample`."""
        pooled: torch.Tensor = self.backbone.forward_head(x_NMD, pre_logits=True)
        return pooled
