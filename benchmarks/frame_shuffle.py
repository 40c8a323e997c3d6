"""Whether a video model sees motion: what shuffling the frames of clips costs it (MViT, arXiv 2104.11227, section 4.4 and table 7).

    python benchmarks/frame_shuffle.py [--clips 960] [--steps 200] [--seeds 3]

Textures move across clips of 16 frames, 32 x 32 px, in one of eight directions, which are the classes. This product builds shards with the
recipe mvit and trains an MViT; and builds frames apart, 1 x 8 x 8 px, for a ViT that does not know when a frame was: a bag of frames. Both
are judged on other clips, and on the same with their frames shuffled, clip by clip. Chance is 0.125, and 0.25 for who knows the axis.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from harness import read, say_where

FRAMES, SIDE, SPEED = 16, 32, 2
DIRECTIONS = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0)]
MODELS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "mvit": (
        ["--recipe", "mvit", "--resolution", f"square:{SIDE}", "--sequence-length", "2048", "--max-segments", "4"],
        {"model": "mvit", "dim": 16, "depth": 4, "heads": 1, "batch_size": 8, "lr": 1e-3},
    ),
    "frame-bag vit": (
        ["--tubelet", "1,8,8", "--resolution", f"square:{SIDE}", "--sequence-length", "1024", "--max-segments", "4"],
        {"model": "vit", "positions": "fourier", "dim": 64, "depth": 4, "heads": 4, "batch_size": 8, "lr": 1e-3},
    ),
}


def make_clip(direction: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns frames of a texture that moves, (T, H, W, 3) uint8."""
    side = SIDE + SPEED * FRAMES
    waves = np.fft.fft2(rng.normal(size=(3, side, side)))
    # smooth on the scale of some pixels, so that motion can be seen
    distance = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    texture = np.fft.ifft2(waves * np.exp(-((distance / 0.08) ** 2))).real.transpose(1, 2, 0)
    texture = (128 + 50 * texture / texture.std()).clip(0, 255).astype(np.uint8)
    starts = [0 if step > 0 else SPEED * FRAMES if step < 0 else SPEED * FRAMES // 2 for step in direction]
    frames = []
    for number in range(FRAMES):
        y, x = (start + SPEED * number * step for start, step in zip(starts, direction, strict=True))
        frames.append(texture[y : y + SIDE, x : x + SIDE])
    return np.stack(frames)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes a clip without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_clips(folder: Path, count: int, seed: int, *, shuffled: bool) -> None:
    """Writes clips of all directions, a folder a class; the same for the same seed but for the order of their frames."""
    rng, order = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    for number in range(count):
        direction = number % len(DIRECTIONS)
        frames = make_clip(DIRECTIONS[direction], rng)
        place = folder / f"{direction}"
        place.mkdir(parents=True, exist_ok=True)
        write_clip(place / f"{number:05}.mp4", frames[order.permutation(FRAMES)] if shuffled else frames)


def build(media: Path, output: Path, options: Sequence[str]) -> str:
    """Builds shards, and returns their folder."""
    from patchpack.command import main as patchpack

    own = ["--labels", "folder", "--clip-frames", str(FRAMES), "--frame-stride", "1"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = patchpack(["build", str(media), "--output", str(output), *options, *own])
    if status:
        raise SystemExit(f"{output}: not built")
    return str(output)


def main() -> None:
    options = read(__doc__, {"clips": 960, "steps": 200, "seeds": 3})
    say_where("torch")
    from patchpack.trainer.train import train

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_clips(scratch / "train", options.clips, 0, shuffled=False)
        for name in ("test", "shuffled"):
            write_clips(scratch / name, 320, 1, shuffled=name == "shuffled")
        for model, (how, shape) in MODELS.items():
            sets = {
                name: build(scratch / name, scratch / f"{model} {name}", how) for name in ("train", "test", "shuffled")
            }
            for seed in range(options.seeds):
                run = shape | {
                    "shards": sets["train"],
                    "seed": seed,
                    "steps": options.steps,
                    "log_every": 10**9,
                    "device": "cpu",
                }
                found: Any = train(run | {"budget": (sets["test"], sets["shuffled"])}, lambda values: None)
                seen, blind = (each["accuracy"] for each in found["budgets"])
                print(f"{model:<14} seed {seed}: accuracy {seen:.3f}, with shuffled frames {blind:.3f}", flush=True)


if __name__ == "__main__":
    main()
