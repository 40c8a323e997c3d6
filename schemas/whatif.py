"""What `plan --compare` and the advice of a report say, key by key: settings, a row for each setting and packer, changes of options.

Fractions are of 1; None stands where there is nothing to divide by, or where a packer has no such figure.
"""

from typing import Annotated, Literal, TypedDict

from patchpack.schemas.figures import Fraction, Options

Why = Literal["length", "segments", "giants", "duplicates", "upsampled", "unbalanced", "shrunk"]


class CostModel(TypedDict):
    """The model behind GPU-hours."""

    model: Annotated[str, "name of the model that is trained"]
    depth: Annotated[int, "layers of it"]
    width: Annotated[int, "width of it"]
    device: Annotated[str, "name of the device"]
    peak_flops: Annotated[float, "what the device can at most, in FLOPs a second"]
    mfu: Annotated[Fraction, "part of that which is used, a fraction of 1"]


class ComparedSetting(TypedDict):
    """Options that were compared."""

    options: Annotated[str, "as typed; empty for the base"]
    config: Annotated[Options, "all that decide bytes"]


class ComparedRow(TypedDict):
    """A setting packed by one packer."""

    setting: Annotated[int, "its place in settings, from 0"]
    packer: Annotated[str, "ours, next-fit, first-fit or best-fit-decreasing"]
    num_sequences: Annotated[int, "sequences"]
    num_segments: Annotated[int, "examples in them"]
    num_tokens: Annotated[int, "real tokens in them"]
    num_rejects: Annotated[int, "views that no sequence can hold"]
    num_shrunk: Annotated[int, "views that are smaller than drawn, for the cap"]
    padding_fraction: Annotated[Fraction | None, "padding / (sequences x sequence length), a fraction of 1"]
    examples_per_sequence: Annotated[float | None, "mean examples of a sequence"]
    attention_cost: Annotated[int, "sum of n^2 over the examples, in pairs of tokens"]
    relative_attention_cost: Annotated[float | None, "attention_cost over that of the base, a ratio"]
    max_over_mean: Annotated[
        dict[str, float | None],
        "cost of the most expensive sequence over the mean, of random steps of 8 and 64 sequences, a ratio",
    ]
    balanced_max_over_mean: Annotated[
        float | None, "the same of the steps that --balance-step stores, a ratio; null without it"
    ]
    predicted_bytes: Annotated[int, "size of the shards before a codec, in bytes"]
    decode_core_hours: Annotated[float, "to decode and resize all views, in hours of one core"]
    attention_gpu_hours: Annotated[float, "part of gpu_hours that attention takes, in hours of one device"]
    gpu_hours: Annotated[float, "to train an epoch, which is one view, in hours of one device by the cost model"]


class WhatIf(TypedDict):
    """The record of a comparison; the first setting is the base, and the first row is ours of it."""

    num_inputs: Annotated[int, "inputs that were listed"]
    num_rejected_inputs: Annotated[int, "inputs that could not be probed"]
    num_examples: Annotated[int, "examples that are compared"]
    num_left_out: Annotated[int, "rejects of a saved plan's sampling, whose sizes are not kept: no setting sees them"]
    decoded_px_per_s: Annotated[float, "what a core decodes, in px/s"]
    cost_model: Annotated[CostModel, "the model behind GPU-hours"]
    settings: Annotated[list[ComparedSetting], "what was compared, the base first"]
    rows: Annotated[list[ComparedRow], "a row for each setting and packer"]


class Advice(TypedDict):
    """A change of options, and what the comparison predicts of it, on the same examples."""

    why: Annotated[Why, "what was seen that the change cures"]
    options: Annotated[str, "what to type, as options of build"]
    gain: Annotated[
        float,
        "what changes are ranked by, a fraction of 1: training time saved a token (length, segments, giants, unbalanced) or an "
        "epoch (upsampled, duplicates), or the part of all pixels that is no longer shrunk away (shrunk)",
    ]
    share: Annotated[
        Fraction | None,
        "part of the sequences that are at max_segments (segments), or of the examples that are enlarged (upsampled), shrunk "
        "(shrunk) or copies (duplicates), a fraction of 1; null of the others",
    ]
    padding_before: Annotated[Fraction | None, "padding of what is there, a fraction of 1"]
    padding_after: Annotated[Fraction | None, "padding predicted, a fraction of 1"]
    attention_ratio: Annotated[float, "attention cost predicted over that of what is there, a ratio"]
    step_before: Annotated[float | None, "cost of the most expensive sequence of a step over the mean, a ratio"]
    step_after: Annotated[float | None, "the same, predicted, a ratio"]
    time_ratio: Annotated[
        float,
        "time to train an epoch, waiting for the slowest of a step included, predicted over that of what is there, a ratio",
    ]
