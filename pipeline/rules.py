"""The rules of the options of `plan` and `build` that need no input: each error names option, value, rule and way out."""

import dataclasses
import difflib
import os
from typing import TYPE_CHECKING

from patchpack.options import flag
from patchpack.pipeline.inputs.split import parse_splits
from patchpack.pipeline.inputs.text import described
from patchpack.pipeline.sampling.dropping import Dropping
from patchpack.pipeline.sampling.framing import Crop
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.schemas.geometry import MAX_GRID, MAX_ROW_BYTES

if TYPE_CHECKING:
    from patchpack.pipeline.config import PlanConfig

# reading from a slow store may leave cores idle; beyond this there is nothing to win, and memory to lose
MAX_WORKERS_A_CORE = 8

# what happens below 1
_AT_LEAST_1 = {
    "sequence_length": "no token fits",
    "max_segments": "no example fits",
    "max_tokens_per_example": "no example fits",
    "clip_frames": "a clip is empty",
    "frame_stride": "no frame follows",
    "clips_per_video": "videos give nothing",
    "views": "nothing is written",
    "grid_multiple": "grids are empty",
    "align_tokens": "no segment starts",
    "text_length": "no text fits",
    "limit": "nothing is taken",
    "group_size": "a group is empty",
    "shard_bytes": "a shard is empty",
    "balance_step": "a step is empty",
    "max_pixels": "everything is rejected",
    "max_bytes": "everything is rejected",
    "workers": "nothing runs",
}


def default_workers() -> int:
    """Returns the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(config: "PlanConfig") -> None:
    """Checks every rule.

    Raises:
        ValueError: one is broken.
    """
    if config.recipe is not None:
        raise ValueError(
            f"recipe {config.recipe}: a config holds options, and no recipe; build and plan read it; give it to them, or "
            "patchpack.pipeline.recipes.with_recipe(options) to a config"
        )
    _check_least(config)
    Resolution.parse(config.resolution)
    Dropping.parse(config.drop_tokens)
    Crop.parse(config.crop)
    _check_shapes(config)
    _check_patches(config)
    _check_sampling(config)
    _check_rates(config)
    _check_fractions(config)
    _check_timeout(config)
    _check_channels(config)
    _check_use(config)
    _check_text(config)
    if config.split is not None:
        parse_splits(config.split)
    elif config.split_column is not None:
        raise ValueError(
            f"--split-column {config.split_column}: there are no splits; it decides which one; add --split train:0.98,val:0.02"
        )


def _check_least(config: "PlanConfig") -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults |= {"max_tokens_per_example": "the sequence length", "limit": "all"}
    defaults |= {"balance_step": "none", "frame_stride": "--fps", "text_length": "the sequence length"}
    for name, harm in _AT_LEAST_1.items():
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{flag(name)} {value}: {harm}; the least is 1; leave it out for {defaults[name]}")


def _check_fractions(config: "PlanConfig") -> None:
    if config.decode_cache_bytes < 0:
        raise ValueError(
            f"--decode-cache-bytes {config.decode_cache_bytes}: no amount of memory; the least is 0; leave it out for 256000000"
        )
    if not 0 <= config.resolution_slack < 1:
        raise ValueError(
            f"--resolution-slack {config.resolution_slack}: not a fraction; it lies in 0..1, 1 left out; leave it out for 0.05"
        )
    if not 0 <= config.drop_slack < 1:
        raise ValueError(
            f"--drop-slack {config.drop_slack}: not a fraction; it lies in 0..1, 1 left out; leave it out for 0.05"
        )
    if not 0 <= config.max_reject_fraction <= 1:
        raise ValueError(
            f"--max-reject-fraction {config.max_reject_fraction}: not a fraction; it lies in 0..1; leave it out for 0.01"
        )


def _check_timeout(config: "PlanConfig") -> None:
    if config.decode_timeout_s is None:
        return
    if not 0 < config.decode_timeout_s < float("inf"):
        raise ValueError(
            f"--decode-timeout-s {config.decode_timeout_s}: nothing is ever done, or nothing ever late; "
            "it is a number of seconds over 0; leave it out for 60"
        )
    if config.decode_isolation == "none":
        raise ValueError(
            f"--decode-timeout-s {config.decode_timeout_s}: a decoder inside the worker cannot be stopped; "
            "the limit needs a process of its own; add --decode-isolation process, or leave it out"
        )


def _check_channels(config: "PlanConfig") -> None:
    if not all(0 <= x <= 1 for x in config.mean) or not all(0 < x <= 1 for x in config.std):
        shown = (",".join(f"{x:g}" for x in values) for values in (config.mean, config.std))
        raise ValueError(
            "--mean {} --std {}: not of pixels scaled to 0..1; mean lies in 0..1, and std does, too, and is over 0; "
            "divide those of 0..255 by 255, or leave them out for 0.5".format(*shown)
        )


def _check_use(config: "PlanConfig") -> None:
    if config.classes is not None and not config.has_labels:
        raise ValueError(
            "--classes: names for labels, and --labels is none; the names are those of labels; add --labels folder, or another source "
            "of them"
        )
    if config.labels != "none" and config.label_column is not None:
        raise ValueError(
            f"--labels {config.labels} --label-column {config.label_column}: both say where labels come from; give at most one; leave the "
            "other out"
        )
    if config.labels not in ("none", "folder") and not config.labels.lower().endswith((".csv", ".tsv")):
        near = difflib.get_close_matches(config.labels, ("none", "folder"), n=1)
        raise ValueError(
            f"--labels {config.labels}: no source of labels; it is folder, a .csv or .tsv file of keys and labels, or none; "
            + (f"the nearest is {near[0]}" if near else "leave it out for none")
        )
    most = MAX_WORKERS_A_CORE * default_workers()
    if config.workers > most:
        raise ValueError(
            f"--workers {config.workers}: each is a process of some 300 MB, and this machine has {default_workers()} "
            f"cores; at most {MAX_WORKERS_A_CORE} a core, {most} here; leave it out for {default_workers()}"
        )


def _check_text(config: "PlanConfig") -> None:
    length = config.layouts[0].text_length
    if config.captions == "none":
        if config.text_length is not None:
            raise ValueError(
                f"--text-length {config.text_length}: no captions are packed; it is their room; add --captions bytes, or leave it out"
            )
        return
    described(config.captions)
    if not 1 <= config.max_text_tokens <= length:
        raise ValueError(
            f"--max-text-tokens {config.max_text_tokens}: a caption lies in one sequence, which has room for {length}; choose 1 to that, or "
            "raise --text-length"
        )
    if config.balance_step is not None:
        raise ValueError(
            f"--captions {config.captions} --balance-step {config.balance_step}: steps are balanced by moving examples from sequence to "
            "sequence, and captions would not fit where they come to; leave one out"
        )


def _check_rates(config: "PlanConfig") -> None:
    if not config.fps > 0 or config.fps == float("inf"):
        raise ValueError(f"--fps {config.fps}: no frame is ever due; it is a number over 0; leave it out for 8")
    if config.frame_stride is not None:
        for name in ("fps", "slow_source"):
            value = getattr(config, name)
            if value != getattr(type(config), name):
                raise ValueError(
                    f"--frame-stride {config.frame_stride} {flag(name)} {value}: the one takes every N-th frame whatever the "
                    "rate of the source, the other goes by that rate; give at most one; leave the other out"
                )


def _check_shapes(config: "PlanConfig") -> None:
    if min(config.tubelet) < 1:
        raise ValueError(
            f"--tubelet {','.join(map(str, config.tubelet))}: an empty block; every side is at least 1; leave it out for 1,16,16"
        )
    if config.max_segments > MAX_GRID:
        raise ValueError(
            f"--max-segments {config.max_segments}: too many; segment ids are int16, so at most {MAX_GRID}; choose fewer"
        )
    if config.max_tokens_per_example and config.max_tokens_per_example > config.sequence_length:
        raise ValueError(
            f"--max-tokens-per-example {config.max_tokens_per_example}: over --sequence-length {config.sequence_length}; "
            "an example lies in one sequence; lower it or raise --sequence-length"
        )
    layout = max(config.layouts, key=lambda layout: layout.token_bytes)
    if layout.token_bytes > MAX_ROW_BYTES:
        raise ValueError(
            f"--sequence-length {config.sequence_length} with --tubelet {','.join(map(str, layout.tubelet))}: "
            f"{layout.token_bytes} bytes a sequence; pyarrow reads back at most {MAX_ROW_BYTES}; "
            "choose a shorter sequence or a smaller tubelet"
        )


def _check_patches(config: "PlanConfig") -> None:
    tubelet = ",".join(map(str, config.tubelet))
    if config.patch_sizes:
        shown = ",".join(map(str, config.patch_sizes))
        if min(config.patch_sizes) < 1 or len(set(config.patch_sizes)) < len(config.patch_sizes):
            raise ValueError(f"--patch-sizes {shown}: each is at least 1 px and stands there once; correct them")
        if config.tubelet[1:] != type(config).tubelet[1:]:
            raise ValueError(
                f"--patch-sizes {shown} --tubelet {tubelet}: both say how high and wide a token is; give the height and width with one "
                "of them; --tubelet T,16,16 leaves them to --patch-sizes"
            )
        if config.stride is not None:
            raise ValueError(
                f"--patch-sizes {shown} --stride {','.join(map(str, config.stride))}: one stride for several patch sizes; overlapping "
                "tubelets have one size; leave one out"
            )
    if config.stride is not None and not all(
        1 <= step <= side for step, side in zip(config.stride, config.tubelet, strict=True)
    ):
        raise ValueError(
            f"--stride {','.join(map(str, config.stride))} --tubelet {tubelet}: pixels would belong to no token; each stride is 1 to the "
            "tubelet's side; lower it, or leave it out for the tubelet"
        )
    if config.sequence_length % config.align_tokens or config.token_cap < config.align_tokens:
        raise ValueError(
            f"--align-tokens {config.align_tokens}: --sequence-length {config.sequence_length} is no multiple of it, or "
            "--max-tokens-per-example below it; choose a length that is"
        )


def _check_sampling(config: "PlanConfig") -> None:
    rule, dropping = Resolution.parse(config.resolution), Dropping.parse(config.drop_tokens)
    if rule.kind == "square":
        for layout in config.layouts:
            if any(rule.numbers[0] % side for side in layout.cell):
                raise ValueError(
                    f"--resolution {config.resolution}: no whole number of tokens of {layout.tubelet[1]}x{layout.tubelet[2]} px"
                    + (f" in multiples of {config.grid_multiple}" if config.grid_multiple > 1 else "")
                    + "; a square is cut into whole ones; choose another R or tubelet"
                )
        if config.upsample == "never":
            raise ValueError(
                f"--resolution {config.resolution} --upsample never: squares are all of one size, small sources too; leave one out"
            )
    budgets = rule.numbers if rule.kind in ("tokens", "pix2struct") else ()
    if budgets and max(budgets) > config.token_cap:
        raise ValueError(
            f"--resolution {config.resolution}: {max(budgets)} tokens do not fit; --sequence-length, or --max-tokens-per-example, is "
            f"{config.token_cap}; raise that or lower the budget"
        )
    if budgets and min(budgets) < config.grid_multiple**2:
        raise ValueError(
            f"--resolution {config.resolution} --grid-multiple {config.grid_multiple}: the least grid has {config.grid_multiple**2} "
            "tokens; raise the budget or lower the multiple"
        )
    if dropping.drops and config.grid_multiple > 1:
        raise ValueError(
            f"--drop-tokens {config.drop_tokens} --grid-multiple {config.grid_multiple}: a model that merges or pools neighbours needs all "
            "of them, and dropped tokens leave gaps; leave one out"
        )
    if dropping.kind == "resolution" and not rule.is_drawn:
        raise ValueError(
            f"--drop-tokens {config.drop_tokens} --resolution {config.resolution}: the rate rises with the side that is drawn, and none is; "
            "use side:LO-HI or area:LO-HI, or another rule to drop by"
        )
    if dropping.kind == "schedule" and config.views < 2:
        raise ValueError(
            f"--drop-tokens {config.drop_tokens} --views {config.views}: the rate changes from view to view, and there is one; give more "
            "--views"
        )
