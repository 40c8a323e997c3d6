"""The float64 reference for video frames: planes -> chroma to the size of luma -> RGB -> resize, each by plain matrices."""

import av
import numpy as np

# ITU-R BT.601, BT.709 and BT.2020: the weights of red and blue in luma
WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def reference_pixels(
    frame: av.VideoFrame, height: int, width: int, matrix: str, full_range: bool, left: bool
) -> np.ndarray:
    """Returns a planar YUV frame as (height, width, 3) float64 in 0..255, as stored: not turned upright.

    Args:
        frame: 8 or 10 bits.
        height: of the result, in px.
        width: of the result, in px.
        matrix: a key of WEIGHTS.
        full_range: whether values go from 0 to their maximum.
        left: whether chroma lies on the left one of its luma columns (H.264), or amid them (JPEG, AV1).
    """
    bits = 10 if "10" in frame.format.name else 8
    luma_HW, *chroma = [_plane(plane, bits) for plane in frame.planes[:3]]
    whole, middle = 2**bits - 1, 2 ** (bits - 1)
    luma_HW = luma_HW / whole if full_range else (luma_HW - 16 * middle / 128) / (219 * middle / 128)
    blue_HW, red_HW = (
        _resize(plane_HW, *luma_HW.shape, 0.25 if left and plane_HW.shape[1] < luma_HW.shape[1] else 0.0)
        for plane_HW in chroma
    )
    scale = whole if full_range else 224 * middle / 128
    blue_HW, red_HW = (blue_HW - middle) / scale, (red_HW - middle) / scale
    kr, kb = WEIGHTS[matrix]
    r = luma_HW + 2 * (1 - kr) * red_HW
    b = luma_HW + 2 * (1 - kb) * blue_HW
    g = (luma_HW - kr * r - kb * b) / (1 - kr - kb)
    return np.stack([_resize(255 * band_HW, height, width) for band_HW in (r, g, b)], 2).clip(0, 255)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / max(1e-12, np.mean((one.astype(float) - other) ** 2))))


def _plane(plane: av.video.plane.VideoPlane, bits: int) -> np.ndarray:
    dtype = np.uint16 if bits > 8 else np.uint8
    return np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width].astype(float)


def _resize(plane_HW: np.ndarray, height: int, width: int, shift: float = 0.0) -> np.ndarray:
    rows = _weights(plane_HW.shape[0], height, 0.0)
    columns = _weights(plane_HW.shape[1], width, shift)
    return rows @ plane_HW @ columns.T


def _weights(size: int, wanted: int, shift: float) -> np.ndarray:
    """Returns the antialiased bicubic (a = -0.5, Pillow's) as a matrix, (requested, size)."""
    step = size / wanted
    places = (np.arange(wanted)[:, None] + 0.5) * step - 0.5 + shift
    taps = np.floor(places).astype(int) + np.arange(-2 * int(step + 1) - 2, 2 * int(step + 1) + 3)
    x = np.abs(taps - places) / max(1.0, step)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    matrix = np.zeros((wanted, size))
    np.add.at(matrix, (np.arange(wanted)[:, None], taps.clip(0, size - 1)), values / values.sum(1, keepdims=True))
    return matrix
