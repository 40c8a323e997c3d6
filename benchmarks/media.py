"""What decoding costs: source megapixels a CPU second, images and clips, and the share of cutting into tokens.

    python benchmarks/media.py [FOLDER]

FOLDER: media, by default ../shared/media beside the checkout. Every file is decoded to 256 tokens a frame, as
`build` does it; rejected files are left out. CPU time, medians over 3 rounds; one line a kind.
"""

import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.config import PlanConfig
from pipeline.media import DecodeError
from pipeline.patchify import patchify
from pipeline.probe import probe
from pipeline.records import Example, Source
from pipeline.shards import decode_example
from pipeline.transforms import library_versions

ROUNDS = 3


def main() -> None:
    """Prints the table."""
    default = Path(__file__).parent.parent.parent / "shared" / "media"
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else default).resolve()
    print(f"{platform.machine()}, python {platform.python_version()}, {library_versions()}")
    config = PlanConfig()
    rates: dict[str, list[float]] = {"images": [], "clips": []}
    shares: list[float] = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        source = Source(path.name, 0, path.name, path.stat().st_size)
        found = probe(source, str(path), config.clip_rule, config.max_pixels)[0]
        if not isinstance(found, Example):
            continue
        row = found._asdict() | {
            "key": path.name, "root": 0, "path": path.name.encode(), "size_bytes": source.size_bytes,
            "grid_t": max(1, len(found.frame_pts)), "grid_h": 16, "grid_w": 16,
        }  # fmt: skip
        pixels = found.source_height * found.source_width * row["grid_t"]
        try:
            decoding, cutting = zip(*(_round(row, [str(path.parent)], config) for _ in range(ROUNDS)), strict=True)
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


def _round(row: dict, roots: list[str], config: PlanConfig) -> tuple[float, float]:
    started = time.process_time()
    frames_THWC = decode_example(row, roots, config)
    decoded = time.process_time()
    patchify(frames_THWC, config.tubelet)
    return decoded - started, time.process_time() - decoded


if __name__ == "__main__":
    main()
