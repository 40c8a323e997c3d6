"""Every option of `patchpack train`: one frozen dataclass is names, types, defaults and help at once.

Shapes, patch size, mean, std and classes are no options: they stand in the dataset's manifest.
"""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from typing import Any


def option(default: Any, text: str, *, kept: bool = True) -> Any:
    """Returns a field with its help; `kept` ones are taken from the checkpoint when a run resumes: all but those of the moment."""
    return dataclasses.field(default=default, metadata={"help": text, "kept": kept})


@dataclass(frozen=True)
class Config:
    """Options of a run. The reason for each default stands beside it."""

    shards: str = dataclasses.field(metadata={"help": "folder or URI of a finished dataset", "kept": False})

    # some minutes on two cores at the default size: enough to see the loss fall
    steps: int = option(200, "train up to this step, counted from the run's first; 0 only evaluates")
    # a handful of sequences is what the demo set has; each holds many examples already
    batch_size: int = option(4, "sequences in a batch")
    layout: int = option(0, "number of the layout to train on")
    seed: int = option(0, "of weights, order and masks")

    # ViT-Tiny's width and heads (DeiT, arXiv:2012.12877, table 1) at a third of its depth, for CPUs
    dim: int = option(192, "width of the model")
    depth: int = option(4, "transformer blocks")
    heads: int = option(3, "attention heads; they divide --dim")
    # MAE, arXiv:2111.06377, figure 5
    mask_share: float = option(0.75, "share of each example's tokens to hide, for datasets without classes")

    # DeiT's 5e-4 for 512 images a batch, table 9: a few packed sequences hold some dozens
    lr: float = option(3e-4, "learning rate at its peak")
    # the time constant 1 / (1 - beta2) of AdamW's second moment
    warmup_steps: int = option(20, "steps of linear warm-up")
    schedule_steps: int | None = option(
        None, "step at which the cosine reaches 0; default: --steps. Set it to train one schedule in parts"
    )
    # DeiT, table 9, and MAE, table 8
    weight_decay: float = option(0.05, "AdamW's weight decay; matrices only")
    # ViT, arXiv:2010.11929, appendix B.1
    clip_norm: float = option(1.0, "clip the norm of the gradient to this")

    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto is cuda where there is one", kept=False)
    # about 0.8 of full reading speed (benchmarks/loader.py), and a changed byte is found before it is trained on
    verify: bool = option(True, "check the digest of every sequence read")
    checkpoint: str | None = option(None, "folder for checkpoints; one is always written at the end")
    checkpoint_every: int = option(500, "steps between checkpoints")
    resume: str | None = option(
        None,
        "checkpoint file, or folder (its newest); keeps that run's options unless they are given anew, and writes its "
        "checkpoints beside that one",
        kept=False,
    )
    eval: str | None = option(None, "evaluate on this dataset at the end")
    log_every: int = option(10, "steps between log lines")
    json: bool = option(False, "log and summary as JSON lines on stdout", kept=False)
    debug: bool = option(False, "show the traceback of an error", kept=False)

    def __post_init__(self) -> None:
        """Checks what needs no file.

        Raises:
            ValueError: an option is out of its range.
        """
        least = {"steps": 0, "batch_size": 1, "checkpoint_every": 1, "log_every": 1, "warmup_steps": 0}
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
        if not 0 < self.mask_share < 1:
            raise ValueError(
                f"--mask-share {self.mask_share}: nothing to learn; a share lies between 0 and 1; leave it out"
            )
        if self.steps == 0 and self.eval is None:
            raise ValueError("--steps 0: nothing to do; it only evaluates, and needs --eval; give --eval or more steps")


# what a checkpoint holds of the run's options, and what a resumed run may not change: the model's shape
KEPT = tuple(field.name for field in dataclasses.fields(Config) if field.metadata["kept"])
MODEL_OPTIONS = ("dim", "depth", "heads")


def flag(name: str) -> str:
    """Returns an option as it is typed."""
    return "--" + name.replace("_", "-")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser; options that are not typed are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="patchpack train",
        description="Train a small NaViT on packed shards: classification where the dataset has classes, otherwise "
        "reconstruction of masked patches. Shapes, patch size, mean, std and classes come from the dataset's manifest.",
        epilog="""examples:
  patchpack train shards/ --steps 1000 --checkpoint runs/a
  patchpack train shards/ --resume runs/a
  patchpack train shards/ --resume runs/a --steps 0 --eval val-shards/""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("shards", metavar="SHARDS", help=Config.__dataclass_fields__["shards"].metadata["help"])
    for field in dataclasses.fields(Config)[1:]:
        text = field.metadata["help"]
        if field.type is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            parser.add_argument(flag(field.name), action=action, help=text)
            continue
        kinds: dict[Any, Any] = {int: int, int | None: int, float: float}
        kind = kinds.get(field.type, str)
        if field.default is not None:
            text += f" (default: {field.default})"
        metavar = {int: "N", float: "X"}.get(kind, "DEVICE" if field.name == "device" else "PATH")
        parser.add_argument(flag(field.name), type=kind, metavar=metavar, help=text)
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
        if name in typed and typed[name] != saved[name]:
            raise ValueError(
                f"{flag(name)} {typed[name]}: the checkpoint's model has {saved[name]}; a resumed model keeps its shape; "
                "leave the option out"
            )
    kept = {name: saved[name] for name in KEPT if name in saved}
    return Config(**kept | {"checkpoint": os.path.dirname(path) or "."} | typed)


def taken_over(typed: dict[str, Any], saved: dict[str, Any], config: Config) -> str:
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
