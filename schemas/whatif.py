"""What `plan --compare` says, key by key: settings, and a row for each setting and packer.

Fractions are of 1; None stands where there is nothing to divide by, or where a packer has no such figure.
"""

from typing import TypedDict

from patchpack.schemas.report import Options


class CostModel(TypedDict):
    """The model behind `gpu_hours`: `peak_flops` of the device a second, of which the part `mfu` is used."""

    model: str
    depth: int
    width: int
    device: str
    peak_flops: float
    mfu: float


class ComparedSetting(TypedDict):
    """Options that were compared: as typed (empty for the base), and all of them that decide bytes."""

    options: str
    config: Options


class ComparedRow(TypedDict):
    """A setting packed by one packer.

    `setting` is its place in `settings`, `packer` is ours, next-fit, first-fit or best-fit-decreasing. `attention_cost` is the sum
    of n^2 over the examples, `relative_attention_cost` over that of the base. `max_over_mean` is the mean over random steps of
    8 and 64 sequences, `balanced_max_over_mean` that of the steps that --balance-step stores. Bytes are those before a codec.
    `decode_core_hours` are of all views, `gpu_hours` of one epoch, which is one view. `num_rejects` are views that no sequence can
    hold.
    """

    setting: int
    packer: str
    num_sequences: int
    num_segments: int
    num_tokens: int
    num_rejects: int
    padding_fraction: float | None
    examples_per_sequence: float | None
    attention_cost: int
    relative_attention_cost: float | None
    max_over_mean: dict[str, float | None]
    balanced_max_over_mean: float | None
    predicted_bytes: int
    decode_core_hours: float
    gpu_hours: float


class WhatIf(TypedDict):
    """The record of a comparison; the first setting is the base, and the first row is ours of it.

    `num_left_out` are rejects that the sampling of a saved plan made: their sizes are not kept, so no setting sees them.
    """

    num_inputs: int
    num_rejected_inputs: int
    num_examples: int
    num_left_out: int
    decoded_px_per_s: float
    cost_model: CostModel
    settings: list[ComparedSetting]
    rows: list[ComparedRow]
