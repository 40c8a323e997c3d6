"""Frames to tokens and back: a reshape and one copy, no arithmetic on pixels.

Tokens stand in (t, y, x) raster order; inside a token the order is (frame, row, column, channel).
"""

import numpy as np

from patchpack.schemas.geometry import Grid, Tubelet, grid_of


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
