"""The report of a million sequences: CPU seconds and memory of making it, size of its page, and seconds until a browser has drawn it.

    python benchmarks/report.py [NUM_SEQUENCES]

NUM_SEQUENCES: 1,000,000 by default, of 16 tokens of 12 bytes; a shard of about a thousand, listed many times. The page is opened from disk in
headless Chromium, from the start of its loading to the last chart; the median of five, beside that of the page of one shard. At
the end what a page costs a build that is small: CPU seconds of a fresh process for the report of one shard, page included.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import cpu, read, say_where

import patchpack
from patchpack.pipeline.report.counted import scan_shards
from patchpack.pipeline.report.gallery import show
from patchpack.pipeline.report.html import render_html
from patchpack.pipeline.report.rejects import RejectCounts
from patchpack.pipeline.report.scan import make_report
from patchpack.schemas import read_manifest, read_shard_table
from patchpack.schemas.manifest import (
    REJECT_TABLE_NAME,
    REJECT_TABLE_SCHEMA,
    SHARD_TABLE_SCHEMA,
    read_table,
    table_bytes,
)

ROUNDS = 5
DRAWN = "() => { const all = document.querySelectorAll('.chart'); return all.length && [...all].every((one) => one.querySelector('svg')); }"


def made(folder: Path) -> Path:
    """Returns a dataset of one shard."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, 2000).tolist()
    examples = [(f"a/{n}", rng.integers(0, 256, (k, 12), dtype=np.uint8), (1, 1, k)) for n, k in enumerate(lengths)]
    patchpack.pack_arrays(examples, folder / "set", patchpack.Layout(16, 4, (1, 2, 2)))
    return folder / "set"


def repeated(folder: Path, num_sequences: int) -> int:
    """Lists the shard of a dataset as often as makes so many sequences, and returns how many they are."""
    [row] = read_shard_table(str(folder)).to_pylist()
    rows = []
    for number in range(max(1, num_sequences // row["num_sequences"])):
        path = f"sequences/part-001-00000-{number:05}.parquet"
        os.link(folder / row["path"], folder / path)
        rows.append({**row, "path": path})
    (folder / "shards.parquet").write_bytes(table_bytes(rows, SHARD_TABLE_SCHEMA))
    return len(rows) * row["num_sequences"]


def page_of(folder: Path) -> str:
    """Returns the page of a dataset."""
    manifest = read_manifest(str(folder))
    rejects = read_table(str(folder), REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    scan = scan_shards(str(folder), read_shard_table(str(folder)).to_pylist(), manifest.balance_step)
    scan.choice.number(scan.number_of)
    return render_html(make_report(manifest, scan, RejectCounts.of(rejects)), show(str(folder), manifest, scan.choice))


def opened(pages: dict[str, Path]) -> dict[str, float]:
    """Returns the median seconds until every chart of each page is drawn; they take turns."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    seconds: dict[str, list[float]] = {name: [] for name in pages}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=False)
        for _ in range(ROUNDS):
            for name, path in pages.items():
                page = browser.new_page(viewport={"width": 1100, "height": 900})
                page.goto(path.as_uri())
                page.wait_for_function(DRAWN)
                seconds[name].append(page.evaluate("performance.now()") / 1000)
                page.close()
        browser.close()
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Prints the figures."""
    count = read(__doc__, num_sequences=1_000_000).num_sequences
    say_where("vl-convert-python", "jinja2")
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(Path(folder))
        small, large = Path(folder) / "small.html", Path(folder) / "large.html"
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import report; report.page_of(report.Path({str(dataset)!r}))"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        small.write_text(page_of(dataset))
        one = sum(read_shard_table(str(dataset))["num_sequences"].to_pylist())
        num_sequences = repeated(dataset, count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text, seconds = cpu(lambda: page_of(dataset))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        large.write_text(text)
        times = opened({"small": small, "large": large})
        print(f"{'sequences':>12}{'page, MB':>10}{'drawn after, s':>16}")
        for number, path, name in ((one, small, "small"), (num_sequences, large, "large")):
            print(f"{number:>12,}{path.stat().st_size / 1e6:>10.2f}{times[name]:>16.2f}")
        print(f"report and page of {num_sequences:,} sequences: {seconds:.1f} CPU s, {grown / 1000:.0f} MB more memory")
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"of {one:,} in a fresh process: {spent:.1f} CPU s, imports included")


if __name__ == "__main__":
    main()
