"""What packing and mixed resolutions buy: accuracy against training compute, at small scale (NaViT, arXiv 2307.06304, figure 1).

    python benchmarks/navit_claim.py [--images 60000] [--seeds 3] [--variants 3] [--processes 2] [--output navit_claim] [--scratch FOLDER]

85 characters are drawn from the installed fonts that have them all, one file a family, two in three families to train on and one in six to judge
by: sizes, stretch, rotation, colours and noise vary. This product builds each arm's shards and trains the same model on them:

    square                   images made square, 64 tokens each
    padded-mixed             aspect kept, sides drawn from 16-64 px as NaViT draws them, one image in a row of 64 tokens
    packed                   aspect kept, 64 tokens at most, packed
    packed-mixed             aspect kept, sides drawn, packed
    packed-mixed-dropping    and tokens left out, the more the larger

All have as many images a step as near as sequences allow, and equal compute in the end: FLOPs of every slot, padding included, and of all
pairs that attend to each other, of forward and backward, as many as the square arm has for --images images. The learning rate is constant,
and the moving average of the weights is judged. The test is full size: 64 square tokens for the square arm, at most 64 tokens with the aspect
kept for the others. Prints accuracy against compute, and what part of the square arm's compute each arm needs for its accuracy; draws both to
OUTPUT.png. --scratch keeps images, shards and runs that are done, so that it goes on where it stopped.
"""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import read, say_where
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"  # 62
    "!#$%&()*+/<=>?@[]{}~£§©"  # 23
)
LENGTH, SIDE = 64, 64
POINTS = 10
LEARNING_RATE = 2e-3
IMAGES_A_STEP = 64
MODEL = {"dim": 96, "depth": 4, "heads": 4, "pool": "mean"}
MIXED = ["--resolution", "side:16-64~normal(-0.5,1)", "--max-tokens-per-example", str(LENGTH), "--views", "4"]
ALONE = ["--sequence-length", str(LENGTH), "--max-segments", "1"]
TOGETHER = ["--sequence-length", str(4 * LENGTH)]
SQUARE, FULL = ["--resolution", f"square:{SIDE}"], ["--resolution", f"tokens:{LENGTH}"]
ARMS = {
    "square": SQUARE + ALONE,
    "padded-mixed": MIXED + ALONE,
    "packed": FULL + TOGETHER,
    "packed-mixed": MIXED + TOGETHER,
    "packed-mixed-dropping": MIXED + TOGETHER + ["--drop-tokens", "resolution:0.2-0.5"],
}
GOALS = {"packed-mixed": 0.5, "packed-mixed-dropping": 0.4}


class Task(NamedTuple):
    """One run: an arm with a seed, what it reads, and how many steps it makes."""

    arm: str
    seed: int
    shards: str
    test: str
    steps: int
    batch_size: int


def families() -> dict[str, str]:
    """Returns a font file of each family that has all characters, by name."""
    from matplotlib import font_manager

    needed, found = {ord(character) for character in CHARACTERS}, {}
    for path in sorted(font_manager.findSystemFonts()):
        try:
            font = font_manager.get_font(path)
        except RuntimeError:
            # a bitmap font, which cannot be scaled
            continue
        if needed <= set(font.get_charmap()) and font.style_name in ("Regular", "Book", "Roman", "Medium"):
            found.setdefault(font.family_name, path)
    return found


def draw(font_path: str, character: str, rng: random.Random) -> Image.Image | None:
    """Returns an image of a character, cut near its edges; None for a font that draws nothing."""
    font = ImageFont.truetype(font_path, rng.randint(40, 90))
    mask = Image.new("L", (260, 260))
    ImageDraw.Draw(mask).text((80, 80), character, font=font, fill=255)
    mask = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, center=(130, 130))
    box = mask.getbbox()
    if box is None:
        return None
    margin = [round(rng.uniform(0, 0.15) * max(box[2] - box[0], box[3] - box[1])) for _ in range(4)]
    mask = mask.crop((box[0] - margin[0], box[1] - margin[1], box[2] + margin[2], box[3] + margin[3]))
    stretch = math.exp(rng.uniform(-0.4, 0.4))
    mask = mask.resize((max(8, round(mask.width * stretch)), max(8, round(mask.height / stretch))))
    noise = np.random.default_rng(rng.getrandbits(32))
    # dark on light, each of its own colour
    behind, before = noise.uniform(150, 255, 3), noise.uniform(0, 100, 3)
    share = np.asarray(mask, np.float32)[..., None] / 255
    pixels = behind * (1 - share) + before * share + noise.normal(0, rng.uniform(0, 15), (*share.shape[:2], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_all(folder: Path, fonts: Sequence[str], variants: int) -> None:
    """Writes images of all characters, one folder a class, unless they are there."""
    if folder.exists():
        return
    for number, character in enumerate(CHARACTERS):
        (folder / f"{number:02}").mkdir(parents=True)
        for at, font in enumerate(fonts):
            for variant in range(variants):
                image = draw(font, character, random.Random(f"{font} {character} {variant}"))
                if image is not None:
                    image.save(folder / f"{number:02}" / f"{at:03}-{variant}.png", compress_level=1)


def build(media: Path, output: Path, options: Sequence[str]) -> str:
    """Builds shards, unless they are there, and returns their folder."""
    from patchpack.command import main as patchpack

    if (output / "manifest.json").exists():
        return str(output)
    arguments = ["build", str(media), "--output", str(output), "--labels", "folder", "--tubelet", "1,8,8", *options]
    with contextlib.redirect_stdout(io.StringIO()):
        status = patchpack(arguments)
    if status:
        raise SystemExit(f"{output}: not built")
    return str(output)


def measured(path: str) -> tuple[float, float]:
    """Returns images a sequence, and FLOPs a sequence, forward and backward, padding included."""
    from patchpack import PackedShards

    shards = PackedShards(path, batch_size=1, shuffle=False, verify=False)
    dim, length, images, pairs = MODEL["dim"], shards.layout.sequence_length, [], []
    for batch in itertools.islice(shards, 2000):
        lengths = batch["lengths"].double()
        # padding attends to itself; where there is one image a row, what is masked is computed all the same
        pairs.append(
            length**2 if shards.layout.max_segments == 1 else float((lengths**2).sum() + (length - lengths.sum()) ** 2)
        )
        images.append(int(batch["num_segments"]))
    block = 24 * dim**2 * length + 4 * dim * float(np.mean(pairs))
    return float(np.mean(images)), 3 * (MODEL["depth"] * block + 2 * dim * shards.layout.token_width * length)


def run(task: Task) -> list[tuple[float, float]]:
    """Trains one arm; returns the part of its steps that is done, and the accuracy of the moving average then."""
    import torch

    from patchpack.trainer.train import train

    kept = Path(task.shards).parent / f"{task.arm}-{task.seed}-{task.steps}-{LEARNING_RATE}.json"
    if kept.exists():
        return [(part, accuracy) for part, accuracy in json.loads(kept.read_text())]
    torch.set_num_threads(1)
    points: list[tuple[float, float]] = []

    def log(values: Mapping[str, object]) -> None:
        if "eval_accuracy" in values:
            points.append((float(str(values["step"])) / task.steps, float(str(values["eval_accuracy"]))))

    options = {"shards": task.shards, "eval": task.test, "seed": task.seed, "steps": task.steps, **MODEL}
    options |= {"batch_size": task.batch_size, "eval_every": max(1, task.steps // POINTS), "ema": 0.98}
    # so long a schedule is constant
    options |= {"schedule_steps": 10**9, "lr": LEARNING_RATE, "warmup_steps": 50, "log_every": 10**9, "device": "cpu"}
    summary = train(options, log)
    points.append((1.0, float(str(summary["eval_accuracy"]))))
    print(f"{task.arm:<22} seed {task.seed}: {task.steps} steps, accuracy {points[-1][1]:.4f}", flush=True)
    kept.write_text(json.dumps(points))
    return points


def reached(curve: np.ndarray, accuracy: float) -> float:
    """Returns the part of the compute at which a curve of (part, accuracy) first has an accuracy; NaN if never."""
    above = np.flatnonzero(curve[:, 1] >= accuracy)
    if not len(above):
        return math.nan
    at = int(above[0])
    if not at:
        return float(curve[0, 0])
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    return float(x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0))


def plot(curves: dict[str, np.ndarray], path: Path) -> None:
    """Draws accuracy against compute."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for arm, curve in curves.items():
        axes.plot(curve[:, 0], 100 * curve[:, 1], label=arm, marker=".")
    axes.set(xlabel="training FLOPs, square arm's = 1", ylabel="accuracy on unseen families, %")
    axes.axhline(100 * curves["square"][-1, 1], color="grey", linewidth=0.7, linestyle=":")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def prepare(scratch: Path, variants: int, images: int, seeds: int) -> list[Task]:
    """Draws and builds everything, and returns the runs."""
    fonts = [path for _, path in sorted(families().items())]
    if len(fonts) < 3:
        raise SystemExit(f"{len(fonts)} font families with all {len(CHARACTERS)} characters; install some more")
    train_fonts, test_fonts = [path for at, path in enumerate(fonts) if at % 3], fonts[::6]
    print(f"{len(CHARACTERS)} characters; families: {len(train_fonts)} to train, {len(test_fonts)} to test", flush=True)
    draw_all(scratch / "train", train_fonts, variants)
    draw_all(scratch / "test", test_fonts, 1)
    tests = {
        "square": build(scratch / "test", scratch / "test-square", SQUARE + ALONE),
        "full": build(scratch / "test", scratch / "test-full", FULL + TOGETHER),
    }
    shards = {arm: build(scratch / "train", scratch / arm, options) for arm, options in ARMS.items()}
    sizes = {arm: measured(path) for arm, path in shards.items()}
    compute = images * sizes["square"][1]
    tasks = []
    for arm, (count, flops) in sizes.items():
        batch_size = max(1, round(IMAGES_A_STEP / count))
        steps = round(compute / (batch_size * flops))
        print(
            f"{arm:<22} {count:6.2f} images a sequence, {batch_size * count:5.1f} a step, {steps} steps, "
            f"{steps * batch_size * count / images:.2f} x as many images",
            flush=True,
        )
        test = tests["square" if arm == "square" else "full"]
        tasks += [Task(arm, seed, shards[arm], test, steps, batch_size) for seed in range(seeds)]
    # seed by seed, so that one of each can be seen early
    return sorted(tasks, key=lambda task: task.seed)


def main() -> None:
    options = read(
        __doc__, {"images": 60000, "seeds": 3, "variants": 3, "processes": 2, "output": "navit_claim", "scratch": ""}
    )
    say_where("torch")
    with tempfile.TemporaryDirectory() as temporary:
        tasks = prepare(Path(options.scratch or temporary), options.variants, options.images, options.seeds)
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            points = pool.map(run, tasks, chunksize=1)
    curves = {
        arm: np.mean([found for task, found in zip(tasks, points, strict=True) if task.arm == arm], axis=0)
        for arm in ARMS
    }
    goal = float(curves["square"][-1, 1])
    for arm, curve in curves.items():
        ends = [found[-1][1] for task, found in zip(tasks, points, strict=True) if task.arm == arm]
        line = "  ".join(f"{part:.2f} {accuracy:.3f}" for part, accuracy in curve[::3])
        asked = f" (at most {GOALS[arm]})" if arm in GOALS else ""
        print(
            f"{arm:<22} accuracy {np.mean(ends):.4f} ({min(ends):.4f} to {max(ends):.4f}); "
            f"the square arm's at {reached(curve, goal):.2f} of its compute{asked}\n{'':<22} {line}"
        )
    plot(curves, Path(f"{options.output}.png"))
    print(f"{options.output}.png")


if __name__ == "__main__":
    main()
