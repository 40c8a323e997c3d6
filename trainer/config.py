"""Every option of `patchpack train`: one frozen dataclass is names, types, defaults and help at once.

Shapes, patch size, mean, std and classes are no options: they stand in the dataset's manifest.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from patchpack.options import Parser, amount, flag, option, settle
from patchpack.schemas.errors import is_redacted
from patchpack.trainer.adapters import PREFIXES
from patchpack.trainer.attention import BACKENDS
from patchpack.trainer.data import CACHE_BYTES
from patchpack.trainer.models import LOSSES, MODELS
from patchpack.trainer.order import SHUFFLE_WINDOW
from patchpack.trainer.pooling import KINDS as POOLS
from patchpack.trainer.positions import COMBINE, COORDINATES
from patchpack.trainer.positions import KINDS as POSITIONS

# the parts of --help
RUN, MODEL, OPTIMISATION, CHECKPOINTS = SECTIONS = ("run", "model", "optimisation", "checkpoints and evaluation")


@dataclass(frozen=True)
class Config:
    """Options of a run. The reason for each default stands beside it."""

    shards: str

    # some minutes on two cores at the default size: enough to see the loss fall
    steps: int = option(
        200, "train up to this step, counted from the run's first; 0 only evaluates", section=RUN, common=True
    )
    # a handful of sequences is what the demo set has; each holds many examples already
    batch_size: int = option(4, "sequences in a batch", section=RUN, common=True)
    layout: int | None = option(
        None, "number of the layout to train on; left out: all of them for flexivit, and else the first", section=RUN
    )
    seed: int = option(0, "of weights, order and masks", section=RUN)
    device: str = option(
        "auto",
        "auto, cpu, cuda or cuda:N; auto is cuda where there is one",
        section=RUN,
        common=True,
        metavar="DEVICE",
        lasting=False,
    )
    # a step's sequences are shared by all processes and cut into so many parts, which changes no step
    accumulate: int = option(
        1, "parts that a step is cut into, one after the other; a step is the same", section=RUN, lasting=False
    )
    precision: str = option(
        "auto",
        "bf16: matrix products in bfloat16; auto: on CUDA, and float32 elsewhere",
        section=RUN,
        choices=("auto", "bf16", "float32"),
    )
    compile: bool = option(False, "compile the model into one graph", section=RUN, lasting=False)
    parallel: str = option(
        "ddp",
        "of several processes, which torchrun starts: ddp keeps all weights on each, fsdp a part of them",
        section=RUN,
        choices=("ddp", "fsdp"),
        lasting=False,
    )
    overfit: int = option(
        0,
        "take the first N steps' batches again and again, to see whether a model can learn them; 0: do not",
        section=RUN,
    )
    peak_tflops: float | None = option(
        None,
        "what one device can do, for the share of it that is used; left out: by the device's name",
        section=RUN,
        lasting=False,
    )
    # about 0.87 of full reading speed (benchmarks/loader.py), and a changed byte is found before it is trained on
    verify: bool = option(True, "check the digest of every sequence read", section=RUN)
    cache: str | None = option(
        None,
        "folder for local copies of the shards of a store, which runs and processes may share; left out: read where they are",
        section=RUN,
        metavar="FOLDER",
        lasting=False,
    )
    cache_bytes: int = option(
        CACHE_BYTES,
        "the most that all copies have together, which hold twice --window shards",
        section=RUN,
        parse=amount,
        metavar="BYTES",
        lasting=False,
    )
    window: int = option(SHUFFLE_WINDOW, "shards that are shuffled together; fewer need a smaller cache", section=RUN)
    on_corrupt: str = option(
        "raise",
        "a broken sequence: raise ends the run; skip trains on an empty one in its place, and says which",
        section=RUN,
        choices=("raise", "skip"),
        lasting=False,
    )
    log_every: int = option(10, "steps between log lines", section=RUN)
    json: bool = option(False, "log and summary as JSON lines on stdout", section=RUN, common=True, lasting=False)
    debug: bool = option(False, "show the traceback of an error", section=RUN, common=True, lasting=False)

    model: str = option(
        "navit",
        f"which of the field's models: {', '.join(MODELS)}; or one of another library, timm:NAME or hf:FOLDER (docs/adapters.md)",
        section=MODEL,
        common=True,
        metavar="NAME",
    )
    # a run that goes on has its own
    pretrained: bool = option(
        False, "begin with the weights that the other library has for --model", section=MODEL, lasting=False
    )
    # ViT-Tiny's width and heads (DeiT, arXiv:2012.12877, table 1) at a third of its depth, for CPUs
    dim: int = option(192, "width of the model", section=MODEL, common=True)
    depth: int = option(4, "transformer blocks", section=MODEL, common=True)
    heads: int = option(3, "attention heads; they divide --dim", section=MODEL, common=True)
    positions: str | None = option(
        None, "how tokens know where they lie; left out: as the model has it", section=MODEL, choices=POSITIONS
    )
    coordinates: str | None = option(
        None,
        "coordinates in tokens, or as parts of the sides; left out: absolute",
        section=MODEL,
        choices=COORDINATES,
    )
    combine: str | None = option(
        None, "how the axes' embeddings are put together; left out: sum", section=MODEL, choices=COMBINE
    )
    pool: str | None = option(
        None, "from tokens to one vector a segment; left out: as the model has it", section=MODEL, choices=POOLS
    )
    loss: str = option(
        "auto",
        "softmax or sigmoid over classes (sigmoid: all labels of an example), reconstruction of hidden patches, or images against captions "
        "(clip, siglip); auto: softmax where the dataset has classes, and else reconstruction",
        section=MODEL,
        common=True,
        choices=("auto", *LOSSES),
    )
    vocabulary: int | None = option(
        None, "tokens that the captions' tokenizer knows; left out: 256, for --captions bytes", section=MODEL
    )
    drop_tokens: float = option(
        0.0, "fraction of each example's tokens to leave out of each step, but of reconstruction", section=MODEL
    )
    attention: str = option(
        "auto",
        "dense: a mask of L x L; blocks: for CPUs; varlen: for CUDA; auto: the fastest there is",
        section=MODEL,
        choices=("auto", *BACKENDS),
        lasting=False,
    )
    # MAE, arXiv:2111.06377, figure 5
    mask_share: float = option(0.75, "fraction of each example's tokens to hide, for reconstruction", section=MODEL)

    # DeiT's 5e-4 for 512 images a batch, table 9: a few packed sequences hold some dozens
    lr: float = option(3e-4, "learning rate at its peak", section=OPTIMISATION, common=True)
    # the time constant 1 / (1 - beta2) of AdamW's second moment
    warmup_steps: int = option(20, "steps of linear warm-up", section=OPTIMISATION)
    schedule_steps: int | None = option(
        None,
        "step at which the cosine reaches 0; left out: --steps. Set it to train one schedule in parts",
        section=OPTIMISATION,
    )
    # DeiT, table 9, and MAE, table 8
    weight_decay: float = option(0.05, "AdamW's weight decay; matrices only", section=OPTIMISATION)
    # ViT, arXiv:2010.11929, appendix B.1
    clip_norm: float = option(1.0, "clip the norm of the gradient to this", section=OPTIMISATION)

    # 0.9999 is usual for runs of 1e5 steps; an average over more steps than a run has is none
    ema: float = option(
        0.0, "keep a moving average of the weights by this factor, and evaluate it; 0: none", section=OPTIMISATION
    )

    checkpoint: str | None = option(
        None,
        "folder for checkpoints; one is always written at the end",
        section=CHECKPOINTS,
        common=True,
        metavar="PATH",
    )
    checkpoint_every: int = option(500, "steps between checkpoints", section=CHECKPOINTS)
    tensorboard: bool = option(
        False, "write TensorBoard's events below --checkpoint, beside log.jsonl", section=CHECKPOINTS
    )
    keep: int = option(3, "newest checkpoints to keep, beside the best; 0: all", section=CHECKPOINTS)
    resume: str | None = option(
        None,
        "checkpoint file, or folder (its newest); keeps that run's options unless they are given anew, and writes its "
        "checkpoints beside that one",
        section=CHECKPOINTS,
        common=True,
        metavar="PATH",
        lasting=False,
    )
    eval: str | None = option(
        None, "evaluate on this dataset at the end", section=CHECKPOINTS, common=True, metavar="PATH"
    )
    budget: tuple[str, ...] = option(
        (),
        "a dataset of another token budget, to judge the model on at the end: accuracy against cost, as a table and as budgets.png beside "
        "the checkpoints; may be repeated",
        section=CHECKPOINTS,
        metavar="PATH",
        repeat=True,
        lasting=False,
    )
    eval_every: int = option(
        0, "evaluate every so many steps, too, and keep the best checkpoint; 0: at the end only", section=CHECKPOINTS
    )

    def __post_init__(self) -> None:
        """Checks what needs no file.

        Raises:
            ValueError: an option is out of its range.
        """
        settle(self)
        least = {"steps": 0, "batch_size": 1, "checkpoint_every": 1, "log_every": 1, "warmup_steps": 0, "accumulate": 1}
        least |= {"overfit": 0, "keep": 0, "eval_every": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)}: too small; the least is {limit}; give {limit} or more"
                )
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)}: not a positive number; training needs one; leave it out"
                )
        self._check_model()
        if not 0 < self.mask_share < 1:
            raise ValueError(
                f"--mask-share {self.mask_share}: nothing to learn; a share lies between 0 and 1; leave it out"
            )
        if self.vocabulary is not None and self.vocabulary < 1:
            raise ValueError(
                f"--vocabulary {self.vocabulary}: no tokens; the least is 1; leave it out for --captions bytes"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema {self.ema}: no average; it lies in 0..1, 1 left out; leave it out for none")
        if not 0 <= self.drop_tokens < 1:
            raise ValueError(
                f"--drop-tokens {self.drop_tokens}: nothing to see; it lies in 0..1, 1 left out; leave it out for 0"
            )
        if self.tensorboard and self.checkpoint is None:
            raise ValueError(
                "--tensorboard: no folder to write to; events lie below --checkpoint; add it, or leave it out"
            )
        if self.steps == 0 and self.eval is None and not self.budget:
            raise ValueError("--steps 0: nothing to do; it only evaluates, and needs --eval; give --eval or more steps")

    def _check_model(self) -> None:
        """Checks the model's name, and that only options are typed that it has.

        Raises:
            ValueError: naming the option.
        """
        if not self.model.startswith(PREFIXES):
            if self.model not in MODELS:
                near = difflib.get_close_matches(self.model, MODELS, 1)
                raise ValueError(
                    f"--model {self.model}: unknown; it is {', '.join(MODELS)}, timm:NAME or hf:FOLDER; "
                    + (f"the nearest is {near[0]}" if near else "leave it out for navit")
                )
            if self.pretrained:
                raise ValueError(
                    f"--pretrained --model {self.model}: has no weights anywhere; timm:NAME and hf:FOLDER may; leave it out"
                )
            return
        for name in _OWN_SHAPE:
            if getattr(self, name) != getattr(Config, name):
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)} --model {self.model}: its shape is the other library's; leave the option out"
                )

    def is_bf16(self, device: torch.device) -> bool:
        """Whether matrix products are made in bfloat16: on most CPUs it is slower than float32."""
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")


# what a checkpoint holds of the run's options, and what a resumed run may not change: the model's shape
KEPT = tuple(field.name for field in dataclasses.fields(Config) if field.metadata.get("lasting"))
# what a model of another library does not have
_OWN_SHAPE = ("dim", "depth", "heads", "positions", "coordinates", "combine", "pool", "drop_tokens", "compile")
MODEL_OPTIONS = ("model", "dim", "depth", "heads", "positions", "coordinates", "combine", "pool", "loss", "vocabulary")


def make_parser() -> Parser:
    """Returns the parser; options that are not typed are absent from its result."""
    parser = Parser(
        prog="patchpack train",
        usage="%(prog)s SHARDS [OPTION ...]\n       %(prog)s --plot FOLDER",
        description="Trains a model of the field on packed shards: classification where the dataset has classes, otherwise\n"
        "reconstruction of hidden patches; or images against captions. Shapes, patch size, mean, std and classes come from\n"
        "the dataset's manifest.",
        epilog="""examples:
  patchpack train shards/ --steps 1000 --checkpoint runs/a
  patchpack train shards/ --resume runs/a
  patchpack train shards/ --resume runs/a --steps 0 --eval val-shards/
  torchrun --nproc-per-node 8 -m patchpack train shards/ --batch-size 64""",
    )
    parser.add_argument("shards", metavar="SHARDS", nargs="?", help="folder or URI of a finished dataset")
    parser.add_argument(
        "--plot", metavar="FOLDER", help="instead of training: draw loss and throughput of a run to FOLDER/curves.png"
    )
    parser.add_options(Config)
    return parser


def resumed(typed: dict[str, Any], saved: dict[str, Any], path: str) -> Config:
    """Returns the options of a run that resumes: those typed now, then the saved run's, then the defaults.

    Its checkpoints go where the one that it resumes lies, wherever that was copied to.

    Args:
        typed: by name.
        saved: options of the run, from its checkpoint.
        path: of that checkpoint.

    Raises:
        ValueError: one typed now would change the shape of the model.
    """
    for name in MODEL_OPTIONS:
        if name in typed and typed[name] != saved.get(name, typed[name]):
            raise ValueError(
                f"{flag(name)} {typed[name]}: the checkpoint's model has {saved[name]}; a resumed model keeps its shape; "
                "leave the option out"
            )
    kept = {name: saved[name] for name in KEPT if name in saved}
    for name, value in kept.items():
        if name not in typed and isinstance(value, str) and is_redacted(value):
            raise ValueError(
                f"{flag(name)} {value}: begun with credentials in it, which no checkpoint keeps; type it again, or another"
            )
    return Config(**kept | {"checkpoint": os.path.dirname(path) or "."} | typed)


def taken_over(typed: Mapping[str, object], saved: Mapping[str, object], config: Config) -> str:
    """Returns the options that a resumed run has of the saved one, as they would be typed, and how its schedule changed."""
    parts = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name in KEPT and field.name not in typed and value != field.default:
            parts.append(
                {True: flag(field.name), False: f"--no-{field.name}"}.get(value, f"{flag(field.name)} {value}")
            )
    if config.schedule_steps is None and config.steps not in (0, saved["steps"]):
        parts.append(f"(the learning rate now ends at step {config.steps}, not {saved['steps']})")
    return " ".join(parts)
