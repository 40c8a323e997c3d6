"""What images cost and how true they stay: against Pillow's full decode, bicubic resize and numpy patchify.

    python benchmarks/media.py [--only ratios,shared,quality,backends,throughput,memory] [--media FOLDER] [--rounds N]

Sections: `ratios` (CPU time of the baseline over ours, by backend and --decode-quality, and the share of cutting into
the row: photos drawn, and two of FOLDER enlarged, at 500x375 and 1 to 12 MP, JPEG quality 90, 4:2:0), `shared` (the same
on the JPEGs of FOLDER), `quality` (PSNR against the float64 bicubic of the full image), `backends` (samples in which
torch and Pillow differ), `throughput` (source megapixels a CPU second of every file, clips among them, as `build`
decodes them), `memory` (peak of one process on the largest images that --max-pixels lets pass). FOLDER: by default
../shared/media beside the checkout. Targets have 256 tokens of 16x16 pixels. CPU time, medians; the two sides of a ratio
take turns.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from harness import SHARED, medians, read, say_where
from PIL import Image

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.image import jpeg
from patchpack.pipeline.media.patchify import patchify
from patchpack.pipeline.media.resize import Pixels, resize, resolved
from patchpack.pipeline.sampling.grids import nearest_grid
from patchpack.pipeline.stages.planned import PlannedExample
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Example, Reference, Source
from patchpack.pipeline.stages.write import decode_example

SECTIONS = ("ratios", "shared", "quality", "backends", "throughput", "memory")
PATCH = (1, 16, 16)
NUM_TOKENS = 256
# (height, width): 500x375, then 1, 2, 4, 8 and 12 megapixels
SIZES = ((375, 500), (866, 1155), (1225, 1633), (1732, 2309), (2449, 3266), (3000, 4000))
BACKENDS = ("pillow", "fast")
# photos of the media folder that are enlarged to SIZES
ENLARGED = ("orientation_1.jpg", "camera_029.jpg")


def main() -> None:
    """Prints the sections asked for."""
    # --peak: this script calls itself, for the memory of one format
    arguments = read(__doc__, {"only": ",".join(SECTIONS), "media": SHARED / "media", "rounds": 9, "peak": ""})
    if arguments.peak:
        return print_peak(arguments.peak)
    say_where("torch")
    for name in arguments.only.split(","):
        print(f"\n== {name}", flush=True)
        globals()[f"print_{name}"](arguments)


def print_ratios(arguments: argparse.Namespace) -> None:
    """Prints the baseline's CPU time over ours on drawn photos."""
    kinds: dict[str, Callable[[int, int], bytes]] = {"drawn": drawn_photo}
    kinds |= {path.name: partial(enlarged_photo, path) for path in arguments.media.rglob("*") if path.name in ENLARGED}
    for kind, make in kinds.items():
        _print_ratios_of(kind, make, arguments)


def _print_ratios_of(kind: str, make: Callable[[int, int], bytes], arguments: argparse.Namespace) -> None:
    totals: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for height, width in SIZES:
        data = make(height, width)
        label = f"{kind:<17} {height * width / 1e6:5.2f} MP {8 * len(data) / (height * width):.1f} bits/px"
        for key, usual_s, ours_s in _print_line(label, data, arguments):
            if 9e5 < height * width < 9e6:
                totals.setdefault(key, []).append((usual_s, ours_s))
    for (backend, quality), pairs in totals.items():
        usual_s, ours_s = (sum(column) for column in zip(*pairs, strict=True))
        print(f"{kind}, 1 to 8 MP, sum of times: {backend} {quality} {usual_s / ours_s:.2f}x")


def print_shared(arguments: argparse.Namespace) -> None:
    """Prints the same for each JPEG of a folder, and the sums by size."""
    bands = {"below 1 MP": (0, 1e6), "1 to 8 MP": (1e6, 8e6), "above 8 MP": (8e6, 1e12)}
    totals: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for name, data, opened in _jpegs(arguments.media):
        size = (opened.height, opened.width)
        label = f"{name[:18]:<18} {size[0] * size[1] / 1e6:5.2f} MP"
        for key, usual_s, ours_s in _print_line(label, data, arguments):
            for band, (low, high) in bands.items():
                if low <= size[0] * size[1] < high:
                    totals.setdefault((band, *key), []).append((usual_s, ours_s))
    for (band, backend, quality), pairs in totals.items():
        usual_s, ours_s = (sum(column) for column in zip(*pairs, strict=True))
        median = statistics.median(usual / ours for usual, ours in pairs)
        print(f"{band}, {len(pairs)} files: {backend} {quality} {usual_s / ours_s:.2f}x in sum, {median:.2f}x median")


def _print_line(
    label: str, data: bytes, arguments: argparse.Namespace
) -> Iterator[tuple[tuple[str, str], float, float]]:
    """Prints the ratios of one image; yields (backend, quality), the baseline's seconds and ours."""
    upright = image.probe(io.BytesIO(data))
    height, width = target_of(upright)
    row_NP = np.zeros((height * width // 256, 768), np.uint8)
    ways: dict[tuple[str, str], Callable[[], object]] = {("usual", ""): lambda: usual_path(data, height, width)}
    for backend in BACKENDS:
        for quality in jpeg.LEAST_RATIO:
            ways[backend, quality] = lambda quality=quality, backend=backend: patchify(
                image.decode(data, height, width, quality, backend)[0], PATCH, row_NP
            )
    frames_THWC, _ = image.decode(data, height, width)
    ways["row", ""] = lambda: patchify(frames_THWC, PATCH, row_NP)
    seconds = medians(ways, arguments.rounds)
    usual_s, row_s = seconds.pop(("usual", "")), seconds.pop(("row", ""))
    scales = "/".join(str(jpeg.scale_for(upright, (height, width), quality)) for quality in jpeg.LEAST_RATIO)
    ratios = ", ".join(
        f"{backend} " + " ".join(f"{usual_s / seconds[backend, quality]:5.2f}" for quality in jpeg.LEAST_RATIO)
        for backend in BACKENDS
    )
    share = row_s / seconds["fast", "default"]
    print(
        f"{label} -> {width}x{height}: usual {usual_s * 1e3:6.2f} ms; {ratios} x (exact default fast; scales 1/{scales}); "
        f"row {share:.1%} of fast",
        flush=True,
    )
    yield from ((key, usual_s, ours_s) for key, ours_s in seconds.items())


def print_quality(arguments: argparse.Namespace) -> None:
    """Prints how far each quality departs from the exact resize: FOLDER's photos at sides from 64 to 320, and at 256."""
    for quality in ("default", "fast"):
        found: dict[str, list[tuple[float, str]]] = {}
        for name, data, opened in _jpegs(arguments.media):
            full_HWC = simplejpeg.decode_jpeg(data, colorspace=jpeg.COLOUR_SPACES[opened.mode])
            for side in range(64, 321, 32):
                source, target = (opened.height, opened.width), target_of(opened.size[::-1], (side // 16) ** 2)
                pixels = jpeg.decode(data, opened.mode, source, target, quality)
                psnr = psnr_of(resize(pixels, *target, resolved("auto")), exact_bicubic(full_HWC, *target))
                case = (psnr, f"{name} at side {side}")
                scale = jpeg.scale_for(source, target, quality)
                kinds = ["all", f"scale 1/{scale}"] + ["all scaled"] * (scale > 1) + ["all at side 256"] * (side == 256)
                for kind in kinds:
                    found.setdefault(kind, []).append(case)
        for which, cases in sorted(found.items()):
            low, middle = np.percentile([psnr for psnr, _ in cases], [5, 50])
            worst = ", ".join(f"{psnr:.1f} ({name})" for psnr, name in sorted(cases)[:2])
            print(
                f"{quality}, {which}: {len(cases)} cases, median {middle:.1f} dB, 5 % {low:.1f}, worst {worst}",
                flush=True,
            )


def print_backends(arguments: argparse.Namespace) -> None:
    """Prints in how many samples the two backends differ, over FOLDER's JPEGs and three sizes."""
    differing = samples = 0
    shares, most = [], 0
    for _, data, opened in _jpegs(arguments.media):
        pixels_HWC = simplejpeg.decode_jpeg(data, colorspace=jpeg.COLOUR_SPACES[opened.mode])
        pixels = Pixels(pixels_HWC, (opened.height - 0.5, opened.width - 0.25), opened.mode)
        for tokens in (64, 256, 1024):
            one, two = (resize(pixels, *target_of(pixels_HWC.shape[:2], tokens), name).astype(int) for name in BACKENDS)
            most = max(most, int(np.abs(one - two).max()))
            differing, samples = differing + int((one != two).sum()), samples + one.size
            shares.append(float((one != two).mean()))
    print(
        f"{len(shares)} cases: at most {most} levels, {differing / samples:.2%} of all samples differ, at most {max(shares):.2%} in a case"
    )


def print_throughput(arguments: argparse.Namespace) -> None:
    """Prints megapixels a second over every file of FOLDER."""
    config = PlanConfig(media_backend=resolved("auto"))
    rates: dict[str, list[float]] = {"images": [], "clips": []}
    shares: list[float] = []
    for path in sorted(path for path in arguments.media.rglob("*") if path.is_file()):
        source = Source(path.name, 0, path.name, path.stat().st_size)
        found = probe(source, str(path), config.clip_rule, config.max_pixels)[0]
        if not isinstance(found, Example):
            continue
        grid = (max(1, len(found.frame_pts)), 16, 16)
        row = PlannedExample.of(Reference(found, 0, 0, 256, 256, grid), 0, None)
        pixels = found.source_height * found.source_width * row.grid_t
        try:
            decoding, cutting = zip(*(_round(row, [str(path.parent)], config) for _ in range(3)), strict=True)
        except DecodeError:
            continue
        rates["clips" if found.frame_pts else "images"].append(pixels / statistics.median(decoding))
        shares.append(statistics.median(cutting) / (statistics.median(decoding) + statistics.median(cutting)))
    for kind, values in rates.items():
        if values:
            low, middle, high = np.percentile(values, [10, 50, 90]) / 1e6
            print(
                f"{kind}: {len(values)} files, median {middle:.0f} Mpx/s of one core (10 % to 90 %: {low:.0f} to {high:.0f})"
            )
    print(f"patchify into the row: {statistics.median(shares):.4f} of an example's CPU time (median)")


def _round(row: PlannedExample, roots: list[str], config: PlanConfig) -> tuple[float, float]:
    started = time.process_time()
    frames_THWC = decode_example(row, roots, config)
    decoded = time.process_time()
    patchify(frames_THWC, config.tubelet)
    return decoded - started, time.process_time() - decoded


# what to write: format, mode, bytes a pixel that it counts for, options of Pillow's writer
LARGEST = {
    "png": ("PNG", "RGB", 4, {"compress_level": 1}),
    "png-alpha": ("PNG", "RGBA", 4, {"compress_level": 1}),
    "png-grey-16": ("PNG", "I;16", 4, {"compress_level": 1}),
    "jpeg": ("JPEG", "RGB", 4, {}),
    "jpeg-progressive": ("JPEG", "RGB", 9, {"progressive": True, "subsampling": 0}),
    "webp": ("WEBP", "RGBA", 17, {"method": 0}),
    "avif": ("AVIF", "RGB", 10, {"speed": 10}),
    "tiff-one-strip": ("TIFF", "RGB", 10, {"compression": "tiff_lzw"}),
}


def print_memory(arguments: argparse.Namespace) -> None:
    """Prints the peak of a process that decodes the largest image of each format; each in a process of its own."""
    for name in LARGEST:
        done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True)
        print(done.stdout.strip() or f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)


def print_peak(name: str) -> None:
    """Decodes the largest image of a format in this process, as a worker does; prints the peak."""
    format, mode, bytes_a_pixel, options = LARGEST[name]
    max_pixels = PlanConfig().max_pixels
    pixels = max_pixels * 4 // bytes_a_pixel
    height = int((pixels * 3 / 4) ** 0.5)
    width = min(pixels // height, 16383 if format in ("WEBP", "AVIF") else pixels)
    # drawn elsewhere, since drawing has a peak of its own
    drawing = (
        "import sys; from PIL import Image; sys.path.insert(0, sys.argv[1]); import media; "
        f"media.large_image({height}, {width}, {mode!r}).save(sys.argv[2], {format!r}, **{options!r})"
    )
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([sys.executable, "-c", drawing, str(Path(__file__).parent), file.name], check=True)
        data = file.read()
    import apache_beam  # noqa: F401 (a worker has it)

    resize(Pixels(np.zeros((64, 64, 3), np.uint8), (64, 64), "RGB"), 16, 16, resolved("auto"))
    before = peak_mib()
    image.probe(io.BytesIO(data), max_pixels)
    image.decode(data, 256, 256, "exact", resolved("auto"))
    peak = peak_mib()
    print(
        f"{name}: {height * width / 1e6:.0f} Mpx, {len(data) / 1e6:.0f} MB: peak {peak:.0f} MiB, "
        f"{(peak - before) * 2**20 / (height * width):.1f} bytes a pixel above the {before:.0f} MiB of the libraries and the file"
    )


def peak_mib() -> float:
    """Returns the most memory that this process has held, in MiB; not getrusage, which begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def large_image(height: int, width: int, mode: str) -> Image.Image:
    """Returns a smooth image that compresses well, so that its file counts little."""
    if mode == "I;16":
        return Image.fromarray(np.zeros((height, width), np.uint16))
    opened = Image.radial_gradient("L").resize((width, height)).convert(mode)
    if mode == "RGBA":
        opened.putalpha(Image.linear_gradient("L").resize((width, height)))
    return opened


def usual_path(data: bytes, height: int, width: int) -> np.ndarray:
    """Returns tokens the usual way: Pillow decodes in full and resizes, numpy cuts."""
    with Image.open(io.BytesIO(data)) as opened:
        small = opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    blocks = np.asarray(small).reshape(height // 16, 16, width // 16, 16, 3)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 768)


def target_of(size: tuple[int, int], tokens: int = NUM_TOKENS) -> tuple[int, int]:
    """Returns the (height, width) of at most so many tokens, as `build` chooses it."""
    h, w = nearest_grid(*size, Fraction(tokens), tokens, PATCH[1:])
    return h * 16, w * 16


def enlarged_photo(path: Path, height: int, width: int) -> bytes:
    """Returns a JPEG (quality 90, 4:2:0) of a photo at another size, with the grain (sigma 4) that enlarging loses."""
    with Image.open(path) as opened:
        large_HWC = np.asarray(opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    grain_HWC = np.random.default_rng(0).normal(0, 4, large_HWC.shape)
    buffer = io.BytesIO()
    grainy = Image.fromarray((large_HWC + grain_HWC).clip(0, 255).astype(np.uint8))
    grainy.save(buffer, "JPEG", quality=90, subsampling=2)
    return buffer.getvalue()


def drawn_photo(height: int, width: int, seed: int = 0) -> bytes:
    """Returns a JPEG (quality 90, 4:2:0) of noise with a photo's spectrum: amplitude 1/f, blurred by a lens.

    It takes 2.6 to 2.8 bits a pixel; those of a camera at this quality take 2 to 3.
    """
    draw = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    lens = np.exp(-((frequency / 0.2) ** 2))
    planes = []
    for strength in (50, 15, 15):
        noise = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((height, width))) / frequency * lens, (height, width))
        planes.append(128 + strength * noise / noise.std())
    ycc = Image.fromarray(np.stack(planes, 2).clip(0, 255).astype(np.uint8), "YCbCr")
    buffer = io.BytesIO()
    ycc.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=2)
    return buffer.getvalue()


def exact_bicubic(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the antialiased bicubic resize (a = -0.5, Pillow's kernel) in float64, clipped to 0..255."""
    rows, columns = _weights(pixels_HWC.shape[0], height), _weights(pixels_HWC.shape[1], width)
    narrow_HwC = np.einsum("wW,HWC->HwC", columns, pixels_HWC.astype(np.float64), optimize=True)
    return np.tensordot(rows, narrow_HwC, 1).clip(0, 255)


def _weights(source: int, target: int) -> np.ndarray:
    scale = source / target
    widened = max(scale, 1.0)
    x = np.abs((np.arange(source)[None] + 0.5 - (np.arange(target)[:, None] + 0.5) * scale) / widened)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def psnr_of(shown: np.ndarray, exact: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((shown - exact) ** 2)))


def _jpegs(folder: Path) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yields name, file and header of each sound JPEG in grey or RGB below a folder."""
    for path in sorted(folder.rglob("*.jp*g")):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            try:
                simplejpeg.decode_jpeg(data)
            except ValueError:
                continue
            if opened.mode in ("L", "RGB"):
                yield path.name, data, opened


if __name__ == "__main__":
    main()
