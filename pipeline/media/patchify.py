"""Frames to tokens and back: a reshape and one copy, no arithmetic on pixels.

Tokens stand in (t, y, x) raster order; inside a token the order is (frame, row, column, channel). Where the stride is
smaller than the tubelet, tokens overlap and reach beyond the edges, where they hold the colour given as filling.
"""

import numpy as np

from patchpack.schemas.geometry import Grid, Layout, Tubelet, grid_of


def patchify_layout(frames_THWC: np.ndarray, layout: Layout, out_NP: np.ndarray | None = None) -> np.ndarray:
    """Returns the tokens of an image or clip as a layout cuts them, overlapping ones too, (N, P) in the frames' dtype.

    Beyond the edges, and before the first frame, tokens hold the channels' mean, which is 0 for the model to half a level.

    Args:
        frames_THWC: (T, H, W, C), H and W whole numbers of strides.
        layout: gives tubelet, stride, padding and mean.
        out_NP: as for `patchify`.

    Raises:
        ValueError: as `patchify`.
    """
    if layout.stride == layout.tubelet:
        return patchify(frames_THWC, layout.tubelet, out_NP)
    num_frames, height, width, channels = frames_THWC.shape
    grid = grid_of(num_frames, height, width, layout.stride)
    shape = grid.num_tokens, layout.token_width
    if out_NP is None:
        out_NP = np.empty(shape, frames_THWC.dtype)
    elif out_NP.shape != shape or not out_NP.flags.c_contiguous:
        raise ValueError(f"out_NP: {out_NP.shape}; the tokens are {shape}, contiguous; give such an array")
    frames_THWC = frames_THWC[np.minimum(np.arange(grid.t * layout.stride[0]), num_frames - 1)]
    reach = [
        (before, max(0, (cells - 1) * step + side - before - cells * step))
        for before, cells, step, side in zip(layout.padding, grid, layout.stride, layout.tubelet, strict=True)
    ]
    padded_THWC = np.empty(
        (*(sum(more) + size for more, size in zip(reach, frames_THWC.shape[:3], strict=True)), channels),
        frames_THWC.dtype,
    )
    padded_THWC[:] = mean_colour(layout)
    inside = tuple(slice(before, before + size) for (before, _), size in zip(reach, frames_THWC.shape[:3], strict=True))
    padded_THWC[inside] = frames_THWC
    windows = np.lib.stride_tricks.sliding_window_view(padded_THWC, layout.tubelet, axis=(0, 1, 2))
    steps = tuple(slice(None, None, step) for step in layout.stride)
    # (t, h, w, C, pt, ph, pw) to channel last
    out_NP[:] = windows[steps].transpose(0, 1, 2, 4, 5, 6, 3).reshape(shape)
    return out_NP


def mean_colour(layout: Layout) -> np.ndarray:
    """Returns the colour that is 0 for the model, to half a level, (C,) uint8."""
    return np.array([int(mean * 255 + 0.5) for mean in layout.mean], np.uint8)


def unpatchify_layout(tokens_NP: np.ndarray, grid: Grid, layout: Layout) -> np.ndarray:
    """Returns the frames that `patchify_layout` cut, repeated last ones included, (T, H, W, C).

    Exact: where tokens overlap it takes the mean of them, whose values are equal unless a model changed them.

    Args:
        tokens_NP: all tokens of the grid, in raster order.
        grid: (t, h, w).
        layout: that they were cut by.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    if layout.stride == layout.tubelet:
        return unpatchify(tokens_NP, grid, layout.tubelet, layout.channels, grid.t * layout.tubelet[0])
    if tokens_NP.shape != (grid.num_tokens, layout.token_width):
        raise ValueError(
            f"tokens_NP: {tokens_NP.shape}; grid {grid} of tubelets {layout.tubelet} x {layout.channels} takes "
            f"{(grid.num_tokens, layout.token_width)}; give matching ones"
        )
    tokens = tokens_NP.reshape(*grid, *layout.tubelet, layout.channels)
    sizes = [cells * step for cells, step in zip(grid, layout.stride, strict=True)]
    spans = [(cells - 1) * step + side for cells, step, side in zip(grid, layout.stride, layout.tubelet, strict=True)]
    sums, counts = np.zeros((*spans, layout.channels)), np.zeros((*spans, 1))
    for offset in np.ndindex(*layout.tubelet):
        cells = tuple(
            slice(first, first + (cells - 1) * step + 1, step)
            for first, cells, step in zip(offset, grid, layout.stride, strict=True)
        )
        sums[cells] += tokens[(slice(None),) * 3 + offset]
        counts[cells] += 1
    inside = tuple(slice(before, before + size) for before, size in zip(layout.padding, sizes, strict=True))
    means_THWC = sums[inside] / counts[inside]
    if np.issubdtype(tokens_NP.dtype, np.integer):
        means_THWC = np.rint(means_THWC)
    frames_THWC: np.ndarray = means_THWC.astype(tokens_NP.dtype)
    return frames_THWC


def patchify(frames_THWC: np.ndarray, tubelet: Tubelet, out_NP: np.ndarray | None = None) -> np.ndarray:
    """Returns the tokens of an image or clip, (N, P) in the frames' dtype.

    The last frame is repeated until the frames fill whole tubelets; so an image under a tubelet of several
    frames stands still.

    Args:
        frames_THWC: (T, H, W, C), H and W whole numbers of tubelets.
        tubelet: (frames, height px, width px).
        out_NP: where to write them, (N, P) and contiguous; made if left out.

    Raises:
        ValueError: height or width is no whole number of tubelets, or `out_NP` has another shape.
    """
    num_frames, height, width, channels = frames_THWC.shape
    t, h, w = grid_of(num_frames, height, width, tubelet)
    pt, ph, pw = tubelet
    if out_NP is None:
        out_NP = np.empty((t * h * w, pt * ph * pw * channels), frames_THWC.dtype)
    elif out_NP.shape != (t * h * w, pt * ph * pw * channels) or not out_NP.flags.c_contiguous:
        raise ValueError(
            f"out_NP: {out_NP.shape}; the tokens are {(t * h * w, pt * ph * pw * channels)}, contiguous; give such an array"
        )
    if t * pt > num_frames:
        frames_THWC = frames_THWC[np.minimum(np.arange(t * pt), num_frames - 1)]
    # a token's row of pixels moved as one: half the time of moving samples
    row = np.dtype((np.void, pw * channels * frames_THWC.itemsize))
    rows = frames_THWC.reshape(t, pt, h, ph, w, pw * channels).view(row)[..., 0].transpose(0, 2, 4, 1, 3)
    out_NP.reshape(t, h, w, pt, ph, pw * channels).view(row)[..., 0] = rows
    return out_NP


def unpatchify(tokens_NP: np.ndarray, grid: Grid, tubelet: Tubelet, channels: int, num_frames: int) -> np.ndarray:
    """Returns the frames that `patchify` cut, (num_frames, H, W, C): its exact inverse.

    Args:
        tokens_NP: all tokens of the grid, in raster order.
        grid: (t, h, w).
        tubelet: (frames, height px, width px).
        channels: of a pixel.
        num_frames: frames before the last was repeated, at most t x pt.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    (t, h, w), (pt, ph, pw) = grid, tubelet
    if tokens_NP.shape != (t * h * w, pt * ph * pw * channels) or not (t - 1) * pt < num_frames <= t * pt:
        raise ValueError(
            f"tokens_NP: {tokens_NP.shape} for {num_frames} frames; grid {grid} of tubelets {tubelet} x {channels} takes "
            f"{(t * h * w, pt * ph * pw * channels)} and {(t - 1) * pt + 1} to {t * pt} frames; give matching ones"
        )
    blocks = tokens_NP.reshape(t, h, w, pt, ph, pw, channels).transpose(0, 3, 1, 4, 2, 5, 6)
    return blocks.reshape(t * pt, h * ph, w * pw, channels)[:num_frames]
