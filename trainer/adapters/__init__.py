"""Models of other libraries over packed sequences, exactly: imported only when asked for.

    timm:NAME   NaFlexViT of timm, by its name there
    hf:NAME     SigLIP 2's vision model or Qwen2.5-VL's tower of transformers, by a folder or a name of a hub

A model made for one image a row is wrong about packed rows without any error: its positions, its registers and its pooling are of a row.
Here examples are embedded and pooled by the library's own code, those of one grid at a time, and only the blocks see packed rows
(`by_example`). See docs/adapters.md.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from patchpack.extras import MissingExtra
from patchpack.schemas import Layout
from patchpack.schemas.manifest import Limits
from patchpack.trainer.model import Model

if TYPE_CHECKING:
    from patchpack.trainer.config import Config

PREFIXES = ("timm:", "hf:")


def make_adapted(config: "Config", layout: Layout, limits: Limits, num_classes: int, backend: str) -> Model:
    """Returns a model of another library, its head made for the classes.

    Args:
        config: of the run; `model` is "timm:NAME" or "hf:NAME".
        layout: of the shards.
        limits: the most that they have.
        num_classes: of the dataset.
        backend: of attention.

    Raises:
        ValueError: there is no such model, or the layout is not for it.
        MissingExtra: the library is not installed.
        RuntimeError: it is, and cannot be imported.
    """
    library, _, name = config.model.partition(":")
    make: Callable[..., Model]
    try:
        if library == "timm":
            from patchpack.trainer.adapters.naflexvit import NaFlexViT

            make = NaFlexViT.named
        else:
            from patchpack.trainer.adapters.hub import of_hub

            make = of_hub
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise MissingExtra(error.name, f"--model {config.model} needs", "adapters") from error
        said = " ".join(str(error).split())
        raise RuntimeError(
            f"--model {config.model}: its library cannot be imported ({said}); often torchvision is made for another torch, as one for CUDA is "
            "beside a torch for CPUs; install both from one place"
        ) from error
    return make(name, config.pretrained, layout, limits, num_classes, backend)
