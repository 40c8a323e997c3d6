"""What `plan --compare` says, key by key: settings, and a row for each setting and packer.

Fractions are of 1; None stands where there is nothing to divide by, or where a packer has no such figure.
"""

from typing import Annotated, TypedDict

from patchpack.schemas.report import Fraction, Options


class CostModel(TypedDict):
    """The model behind `gpu_hours`."""

    model: Annotated[str, "name of the model that is trained"]
    depth: Annotated[int, "blocks of the model"]
    width: Annotated[int, "width of the model (D)"]
    device: Annotated[str, "name of the device"]
    peak_flops: Annotated[float, "what the device can do, in floating point operations a second"]
    mfu: Annotated[Fraction, "part of peak_flops that is used, a fraction of 1"]


class ComparedSetting(TypedDict):
    """Options that were compared."""

    options: Annotated[str, "options as typed; empty for the base"]
    config: Annotated[Options, "every option that decides bytes"]


class ComparedRow(TypedDict):
    """A setting packed by one packer."""

    setting: Annotated[int, "place in settings, from 0"]
    packer: Annotated[str, "ours, next-fit, first-fit or best-fit-decreasing"]
    num_sequences: Annotated[int, "sequences"]
    num_segments: Annotated[int, "examples in them"]
    num_tokens: Annotated[int, "real tokens in them, padding not counted"]
    num_rejects: Annotated[int, "views of examples that no sequence can hold"]
    padding_fraction: Annotated[Fraction | None, "padding / (sequences x sequence length), a fraction of 1"]
    examples_per_sequence: Annotated[float | None, "examples / sequences"]
    attention_cost: Annotated[int, "sum of n^2 over examples of n tokens, in pairs of tokens"]
    relative_attention_cost: Annotated[float | None, "attention_cost / that of the base, a ratio"]
    max_over_mean: Annotated[
        dict[str, float | None],
        "mean of maximum / mean attention cost of random steps, a ratio, by their number of sequences: 8 and 64",
    ]
    balanced_max_over_mean: Annotated[float | None, "the same of the steps that --balance-step stores, a ratio"]
    predicted_bytes: Annotated[int, "size of all shards before a codec, in bytes"]
    decode_core_hours: Annotated[float, "time to decode and resize all views, in hours of one core"]
    gpu_hours: Annotated[float, "time to train one epoch, which is one view, in hours of one device"]


class WhatIf(TypedDict):
    """The record of a comparison; the first setting is the base, and the first row is ours of it."""

    num_inputs: Annotated[int, "inputs that were listed and not ignored"]
    num_rejected_inputs: Annotated[int, "inputs with a reject, not counting videos of which a part is kept"]
    num_examples: Annotated[int, "examples that were probed"]
    num_left_out: Annotated[
        int, "rejects that the sampling of a saved plan made: their sizes are not kept, so no setting sees them"
    ]
    decoded_px_per_s: Annotated[float, "what one core decodes, in px a second"]
    cost_model: Annotated[CostModel, "the model behind gpu_hours"]
    settings: Annotated[list[ComparedSetting], "the options that were compared, the base first"]
    rows: Annotated[list[ComparedRow], "each setting packed by each packer"]
