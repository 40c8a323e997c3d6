"""What a log line says of a window of steps: loss, rates of real things, and how much of the device they use.

Padding is work and no progress: rates count real tokens, and so does the useful model FLOPs utilisation (MFU): those of the real
tokens and of n^2 pairs a segment, three times for forward and backward (Kaplan et al., arXiv 2001.08361, section 2.1), over the
device's dense bf16 peak.
"""

import math
import time

import torch

# dense bf16 or fp16 tensor TFLOPS by a part of the device's name, from the vendors' data sheets
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
    "V100": 125.0,
}


def peak_flops(device: torch.device, tflops: float | None) -> float | None:
    """Returns the FLOPs a second that a device can do, or None where nobody says."""
    if tflops is not None:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


class Meter:
    """Counts a window of steps, and the run."""

    def __init__(self, slots: int, peak: float | None) -> None:
        """Starts both.

        Args:
            slots: tokens of a step, padding included.
            peak: FLOPs a second of all devices together, or None.
        """
        self._slots, self._peak = slots, peak
        self._run_begun = time.perf_counter()
        self.run = _Sums()
        self.last_loss = self._norm = math.nan
        self._restart()

    def add(self, loss: float, norm: float, tokens: float, examples: float, flops: float) -> None:
        """Adds a step, all processes together; `norm` is that of its gradient."""
        self._norm = norm
        for sums in (self.run, self._window):
            sums.steps += 1
            sums.loss += loss
            sums.tokens += tokens
            sums.examples += examples
            sums.flops += flops

    def waited(self, seconds: float) -> None:
        """Adds time in which this process had no batch."""
        self._waited += seconds

    def window(self) -> dict[str, object]:
        """Returns what the window says, and starts the next."""
        seconds = time.perf_counter() - self._begun
        said = self._said(self._window, seconds) | {"waiting": self._waited / seconds}
        self.last_loss = self._window.loss / self._window.steps
        self._restart()
        return {"loss": self.last_loss, "grad_norm": self._norm} | said

    def whole(self) -> dict[str, object]:
        """Returns what the run says."""
        seconds = time.perf_counter() - self._run_begun
        return {"real_tokens": int(self.run.tokens)} | self._said(self.run, seconds) | {"seconds": seconds}

    def seconds_a_step(self) -> float:
        """Returns the mean of the run."""
        return (time.perf_counter() - self._run_begun) / max(1, self.run.steps)

    def _said(self, sums: "_Sums", seconds: float) -> dict[str, object]:
        return {
            "tokens_per_s": sums.tokens / seconds,
            "examples_per_s": sums.examples / seconds,
            "efficiency": sums.tokens / (sums.steps * self._slots),
            "mfu": None if self._peak is None else sums.flops / seconds / self._peak,
        }

    def _restart(self) -> None:
        self._begun, self._waited, self._window = time.perf_counter(), 0.0, _Sums()


class _Sums:
    """Sums over steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.loss = self.tokens = self.examples = self.flops = 0.0
