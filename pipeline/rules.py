"""The rules of the options of `plan` and `build` that need no input: each error names option, value, rule and way out."""

import dataclasses
import os
from typing import TYPE_CHECKING

from patchpack.options import flag
from patchpack.pipeline.stages.sample import Resolution
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
    _check_least(config)
    Resolution.parse(config.resolution)
    _check_shapes(config)
    _check_rates(config)
    _check_fractions(config)
    _check_timeout(config)
    _check_channels(config)
    _check_use(config)


def _check_least(config: "PlanConfig") -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults |= {"max_tokens_per_example": "the sequence length", "limit": "all"}
    defaults |= {"balance_step": "none", "frame_stride": "--fps"}
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
    if config.classes is not None and config.labels == "none":
        raise ValueError(
            "--classes: names for labels, and --labels is none; the names are those of folders; add --labels folder"
        )
    most = MAX_WORKERS_A_CORE * default_workers()
    if config.workers > most:
        raise ValueError(
            f"--workers {config.workers}: each is a process of some 300 MB, and this machine has {default_workers()} "
            f"cores; at most {MAX_WORKERS_A_CORE} a core, {most} here; leave it out for {default_workers()}"
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
    layout = config.layout
    if layout.token_bytes > MAX_ROW_BYTES:
        raise ValueError(
            f"--sequence-length {config.sequence_length} with --tubelet {','.join(map(str, config.tubelet))}: "
            f"{layout.token_bytes} bytes a sequence; pyarrow reads back at most {MAX_ROW_BYTES}; "
            "choose a shorter sequence or a smaller tubelet"
        )
