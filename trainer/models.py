"""The models by name: each a row of the field, and what it differs in.

    navit       NaViT (arXiv 2307.06304): factorised positions, attention pooling, normed queries and keys, no biases
    vit         ViT (arXiv 2010.11929, as DeiT and big_vision train it): one table of positions, mean of the tokens, biases
    flexivit    FlexiViT (arXiv 2212.08013): a ViT of all patch sizes of the dataset
    vivit       ViViT's joint space-time attention (arXiv 2103.15691, model 1): a ViT whose tables have a time axis
    mvit        MViT (arXiv 2104.11227): queries, keys and values pooled inside each clip; for classes
    pix2struct  Pix2Struct's encoder (arXiv 2210.03347): a learned row and a learned column for each place

A model takes a batch of `PackedShards` and returns what it says of it; its `loss` of both is what a step makes smaller.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from patchpack.schemas import Layout, Manifest
from patchpack.schemas.manifest import Limits, largest_limits
from patchpack.trainer.adapters import PREFIXES, make_adapted
from patchpack.trainer.attention import choose_backend
from patchpack.trainer.model import Model
from patchpack.trainer.mvit import MViT
from patchpack.trainer.pairs import TwoTowers
from patchpack.trainer.text import TextTower
from patchpack.trainer.vit import Shape, ViT

if TYPE_CHECKING:
    from patchpack.trainer.config import Config

# of FlexiViT, section 3.4: the weights that are resized are those of patches of 32 px, the table of positions is 7 x 7
FLEXIVIT_PATCH, FLEXIVIT_POSITIONS = 32, 7

_VIT = {"positions": "grid", "pool": "mean", "qk_norm": False, "bias": True}
_SHAPES: dict[str, dict[str, Any]] = {
    "navit": {},
    "vit": _VIT,
    "flexivit": _VIT | {"most_positions": FLEXIVIT_POSITIONS},
    "vivit": _VIT | {"positions": "learned"},
    "pix2struct": _VIT | {"positions": "learned"},
}
MODELS = (*_SHAPES, "mvit")
OF_CLASSES, OF_PAIRS = ("softmax", "sigmoid"), ("clip", "siglip")
LOSSES = (*OF_CLASSES, "reconstruction", *OF_PAIRS)
# of --captions bytes
_BYTES = 256


def make_model(
    config: "Config", manifest: Manifest, layouts: list[int], device: torch.device, others: Sequence[Limits] = ()
) -> Model:
    """Returns the model that the options name, on its device, its weights drawn from torch's global generator.

    Args:
        config: of the run.
        manifest: of the dataset that it is trained on.
        layouts: numbers of the layouts that it reads.
        device: where it runs.
        others: of what else it reads.

    Raises:
        ValueError: the options, the dataset and the device do not fit each other.
    """
    loss = choose_loss(config, manifest)
    num_classes = len(manifest.classes or ()) if loss in OF_CLASSES else None
    own = largest_limits([manifest.limits[number] for number in layouts])
    limits = largest_limits([own, *others])
    if config.model.startswith(PREFIXES):
        made: Model = _make_adapted(config, manifest.layouts[layouts[0]], limits, num_classes, device)
    elif config.model == "mvit":
        made = _make_mvit(config, manifest.layouts[layouts[0]], limits, num_classes, device)
    else:
        made = _make_vit(config, manifest, layouts, limits, loss, device)
    made.is_multilabel = loss == "sigmoid"
    return made.to(device)


def _make_vit(
    config: "Config", manifest: Manifest, layouts: list[int], limits: Limits, loss: str, device: torch.device
) -> ViT | TwoTowers:
    """Returns a ViT, or one beside a text tower."""
    shape = make_shape(config, max(max(manifest.limits[number]["max_grid"]) for number in layouts))
    read = sorted((manifest.layouts[number] for number in layouts), key=_from_flexivit)
    backend = choose_backend(config.attention, device, shape.dim // shape.heads)
    made = ViT(
        shape,
        read,
        limits,
        len(manifest.classes or ()) if loss in OF_CLASSES else None,
        attention=backend,
        drop_share=config.mask_share if loss == "reconstruction" else config.drop_tokens,
        reconstructs=loss == "reconstruction",
    )
    if loss not in OF_PAIRS:
        return made
    how: dict[str, Any] = {"bias": shape.bias, "qk_norm": shape.qk_norm, "backend": backend}
    vocabulary = config.vocabulary or _BYTES
    text = TextTower(vocabulary, read[0].text_length, shape.dim, shape.depth, shape.heads, **how)
    return TwoTowers(made, text, loss)


def choose_loss(config: "Config", manifest: Manifest) -> str:
    """Returns one of LOSSES; "auto" is softmax where the dataset has classes, and else reconstruction.

    Raises:
        ValueError: the dataset or the other options are not for it.
    """
    loss = config.loss
    if loss == "auto":
        loss = "reconstruction" if manifest.classes is None else "softmax"
    for number in layouts_of(config, manifest):
        check_dataset(loss, manifest, number, config.shards)
    if loss in OF_PAIRS and config.accumulate > 1:
        raise ValueError(
            f"--accumulate {config.accumulate} --loss {loss}: each part would be compared with itself alone; a step compares all of "
            "its pairs; leave --accumulate out, and use more processes"
        )
    if loss in OF_PAIRS and config.vocabulary is None and manifest.config.get("captions") != "bytes":
        raise ValueError(
            f"--loss {loss}: {config.shards} has captions by {manifest.config.get('captions')}; the model needs to know how many tokens that "
            "knows; give --vocabulary, its get_vocab_size()"
        )
    return loss


def check_dataset(loss: str, manifest: Manifest, number: int, path: str) -> None:
    """Checks that a layout of a dataset has what a loss is of.

    Raises:
        ValueError: it has not.
    """
    if loss in OF_CLASSES and manifest.classes is None:
        raise ValueError(f"--loss {loss}: {path} has no classes; build it with --labels, or leave the option out")
    if loss == "sigmoid" and not manifest.limits[number]["max_labels"]:
        raise ValueError(
            f"--loss sigmoid: {path} does not say how many labels an example has; datasets of this version do; build it again"
        )
    if loss in OF_PAIRS and not manifest.layouts[number].text_length:
        raise ValueError(f"--loss {loss}: {path} has no captions; build it with --captions, or leave the option out")


def _make_adapted(
    config: "Config", layout: Layout, limits: Limits, num_classes: int | None, device: torch.device
) -> Model:
    """Returns a model of another library; raises ValueError where the dataset is not for it."""
    if num_classes is None:
        raise ValueError(f"--model {config.model}: a loss without classes; it learns classes; build with --labels")
    # a head of 64 is what most of them have, and none of another width is known before it is made
    return make_adapted(config, layout, limits, num_classes, choose_backend(config.attention, device, 64))


def _make_mvit(
    config: "Config", layout: Layout, limits: Limits, num_classes: int | None, device: torch.device
) -> Model:
    """Returns an MViT; raises ValueError where the dataset or the options are not for it."""
    if num_classes is None or config.drop_tokens:
        what = "a loss without classes" if num_classes is None else f"--drop-tokens {config.drop_tokens}"
        raise ValueError(
            f"--model mvit: {what}; it pools whole grids, and learns classes; build with --labels, or leave it out"
        )
    return MViT(
        layout,
        limits,
        num_classes,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        most_positions=max(limits["max_grid"]),
        attention=choose_backend(config.attention, device, config.dim // max(1, config.heads)),
    )


def layouts_of(config: "Config", manifest: Manifest) -> list[int]:
    """Returns the numbers of the layouts that a run reads.

    Raises:
        ValueError: there is none of that number.
    """
    count = len(manifest.layouts)
    if config.layout is None:
        return list(range(count)) if config.model == "flexivit" else [0]
    if not 0 <= config.layout < count:
        raise ValueError(
            f"--layout {config.layout}: no such layout; {config.shards} has {count}, counted from 0; choose one of them"
        )
    return [config.layout]


def make_shape(config: "Config", most_positions: int) -> Shape:
    """Returns what a model is by its name and by the options that say otherwise.

    Args:
        config: of the run.
        most_positions: the largest side of a grid of the dataset, which tables of positions have as many rows as.
    """
    how = {"most_positions": most_positions} | _SHAPES[config.model]
    typed = {
        "positions": config.positions,
        "coordinates": config.coordinates,
        "combine": config.combine,
        "pool": config.pool,
    }
    how |= {name: value for name, value in typed.items() if value is not None}
    return Shape(config.dim, config.depth, config.heads, **how)


def _from_flexivit(layout: Layout) -> int:
    return abs(layout.tubelet[1] - FLEXIVIT_PATCH)
