"""A stated model of what a dataset takes: pixels a second of a core, FLOPs of ViT-B, forward and backward, GPU-hours at a stated MFU.

Linear layers run over every token of a sequence, padding too; attention over the n^2 pairs of each segment, as kernels that
skip other segments do. Heads, optimiser and loading are left out. Good to rank settings, and not to book machines.
"""

from patchpack.schemas.geometry import Layout
from patchpack.schemas.whatif import CostModel

# ViT-B: Dosovitskiy et al., arXiv 2010.11929, table 1
DEPTH, WIDTH = 12, 768
# the backward pass takes twice the forward one: Kaplan et al., arXiv 2001.08361, section 2.1
PASSES = 3
# A100 SXM, dense bf16: NVIDIA's data sheet
PEAK_FLOPS = 312e12
# below the 0.46 of PaLM (Chowdhery et al., arXiv 2204.02311, table 3) and the 0.55 of ViT-22B (arXiv 2302.05442, section 4.1)
MFU = 0.4
# source pixels decoded and resized in a second of one core, between images (125 million, median) and clips (67):
# benchmarks/media.py --only throughput
DECODED_PX_PER_S = 90e6

MODEL: CostModel = {
    "model": "ViT-B",
    "depth": DEPTH,
    "width": WIDTH,
    "device": "A100 SXM",
    "peak_flops": PEAK_FLOPS,
    "mfu": MFU,
}


def training_flops(layout: Layout, num_sequences: int, num_pairs: int) -> int:
    """Returns the FLOPs of one pass over sequences, forward and backward.

    Args:
        layout: of the sequences.
        num_sequences: of all their tokens.
        num_pairs: the sum of n^2 over the segments.
    """
    # a multiply and an add for each weight: 4 D^2 of attention and 8 D^2 of the MLP in a layer, P D of the patch embedding
    of_token = 2 * (DEPTH * 12 * WIDTH**2 + layout.token_width * WIDTH)
    # scores, and their sum over values
    of_pair = 2 * DEPTH * 2 * WIDTH
    return PASSES * (num_sequences * layout.sequence_length * of_token + num_pairs * of_pair)


def gpu_hours(flops: int) -> float:
    """Returns the hours of one device that FLOPs take."""
    return flops / (PEAK_FLOPS * MFU) / 3600
