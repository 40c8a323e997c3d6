"""A bound with its proof, as a dataset keeps it: a row of `bounds.parquet` for each length, and two integers in the manifest."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from patchpack.pipeline.packing.certificate import bound_of, check_bound
from patchpack.pipeline.packing.instance import read_histogram
from patchpack.pipeline.packing.pack import bound_of_histogram
from patchpack.pipeline.packing.result import Certificate
from patchpack.schemas.geometry import Layout
from patchpack.schemas.manifest import BOUND_TABLE_SCHEMA
from patchpack.schemas.report import Bound


class ProvenBound(NamedTuple):
    """The bound of one (view, layout): its entry in the manifest, and the rows of its proof."""

    entry: Bound
    rows: pa.Table


def prove(
    lengths: Mapping[int, int],
    layout: Layout,
    chunks: Sequence[tuple[int, int]],
    *,
    view: int = 0,
    layout_number: int = 0,
    num_moved: int = 0,
) -> ProvenBound:
    """Returns the best proven bound on the sequences for all examples of one view.

    Args:
        lengths: number of examples of each token count.
        layout: of the sequences.
        chunks: sequences and bound of each that was packed alone.
        view: its number.
        layout_number: of the layout in the manifest.
        num_moved: examples that have another count than they asked for.
    """
    values = sorted(lengths)
    numbers = [lengths[value] for value in values]
    num_sequences = sum(number for number, _ in chunks)
    certificate = bound_of_histogram(
        values, numbers, layout.sequence_length, layout.max_segments, num_bins=num_sequences
    )
    rows = {
        "view": np.full(len(values), view, np.int32),
        "layout": np.full(len(values), layout_number, np.int32),
        "length": np.array(values, np.int64),
        "num_examples": np.array(numbers, np.int64),
        "dual": certificate.duals,
    }
    entry: Bound = {
        "view": view,
        "layout": layout_number,
        "num_sequences": num_sequences,
        "bound": certificate.bound,
        "num_moved": num_moved,
        "num_chunks": len(chunks),
        "num_chunks_optimal": sum(number == bound for number, bound in chunks),
        "scale": certificate.scale,
        "slot_dual": certificate.slot_dual,
    }
    return ProvenBound(entry, pa.table(rows, BOUND_TABLE_SCHEMA))


def check(bound: ProvenBound, layout: Layout) -> None:
    """Returns only where the rows prove the bound; trusts neither solver nor packer.

    Raises:
        ValueError: they do not; the message says where.
    """
    entry, rows = bound
    values, numbers, duals = (rows[name].to_numpy() for name in ("length", "num_examples", "dual"))
    histogram = read_histogram(values, numbers, layout.sequence_length, layout.max_segments)
    if not np.array_equal(histogram.values, values):
        raise ValueError("length: they do not rise; the rows of a proof do; do not use it")
    certificate = Certificate(entry["bound"], values, duals, entry["scale"], entry["slot_dual"])
    check_bound(histogram, certificate, entry["bound"])
    proven = bound_of(histogram.counts, duals, entry["scale"])
    if entry["bound"] != proven:
        raise ValueError(f"bound: {entry['bound']}; its certificate proves {proven}; a bound is all that is proven")
