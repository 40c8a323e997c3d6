"""How well and how fast examples are packed: bins, proven bound, CPU time, against the packers in use.

    python benchmarks/packing.py [--quick] [--only sets,fresh,resources,fast,memory,field,segments,classical]

Sections: `sets` (every dataset of ../shared/lengths beside the checkout at the capacities it fits, N drawn with replacement
by a fixed seed, and Krell's published histograms), `fresh` (more examples bring new lengths: native sizes, videos),
`resources` (tokens and a second one), `fast` (method="best-fit" against `np.sort` of the same lengths and
against a best-fit loop), `memory` (peak above the input at N = 1e7), `field` (bins of the packers in use), `segments`
(max_segments binds), `classical` (Falkenauer's uniform and triplets, "A hybrid grouping genetic algorithm for bin
packing", 1996, section 5; and a class made like Hard28: 160 to 200 lengths of U(1, 800) at capacity 1000 that closed
forms leave open). CPU time of this process. Every packing and every certificate is checked. `--quick`: N up to 1e5 and
a few cases of each.
"""

import importlib.util
import resource
import statistics
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import SHARED, cpu, read, say_where

from patchpack.pipeline.packing import Packing, check_certificate, check_packing, pack

LENGTHS = SHARED / "lengths"
CAPACITIES = {
    "side_uniform_64_256": (256, 512, 576, 1024, 4096),
    "side_normal_64_256": (256, 512, 576, 1024, 4096),
    "side_uniform_64_384": (576, 1024, 4096),
    "images_and_clips_4096": (4096,),
    "native_photos_4096": (4096,),
    "images_and_clips_16384": (16384,),
    "native_photos_16384": (16384,),
}
PUBLISHED = {"wikipedia_512": (512, 8_135_727), "squad_384": (384, 40_195)}
SEGMENTS = (
    ("side_uniform_64_256", 1024, (8, 10, 11, 12, 16)),
    ("side_uniform_64_256", 4096, (32, 40, 44, 48)),
    ("side_normal_64_256", 512, (5, 6, 8)),
    ("images_and_clips_4096", 4096, (2, 3, 4, 8)),
)
OPEN_BINS = 64
BINS = f"{'bins':>9} {'bound':>9} {'gap %':>8} {'':<9}"


def drawn(name: str, count: int) -> npt.NDArray[np.uint16]:
    """Returns lengths of a dataset, drawn with replacement by a fixed seed."""
    return np.random.default_rng(0).choice(np.load(LENGTHS / f"{name}.npy"), count)


def fresh(kind: str, count: int) -> npt.NDArray[np.int64]:
    """Returns lengths that are drawn afresh, so that more examples bring new lengths.

    NaViT images of sides 64 to 256, native sizes of photos, clips of 8 to 64 steps of such images, or videos.
    """
    rng = np.random.default_rng(0)
    if kind in ("sides", "clips"):
        sides, aspects = rng.uniform(64, 256, count), np.exp(rng.normal(0, 0.35, count) / 2)
        h, w = (np.maximum(1, np.rint(side / 16)) for side in (sides / aspects, sides * aspects))
        steps = rng.integers(8, 65, count) * (rng.random(count) < 0.5) if kind == "clips" else 0
        return np.minimum(h * w * np.maximum(1, steps), 16_384 if kind == "clips" else 256).astype(np.int64)
    if kind in ("videos", "long videos"):
        least = 256 if kind == "videos" else 8_192
        return np.exp(rng.uniform(np.log(least), np.log(65_536), count)).astype(np.int64)
    # 1.3 megapixels in the middle, patches of 16, what is over 16,384 tokens drawn again
    sides = np.sqrt(1.3e6 * np.exp(rng.normal(0, 0.6, 2 * count))), np.exp(rng.normal(0, 0.175, 2 * count))
    h, w = (np.maximum(1, np.rint(side / 16)) for side in (sides[0] / sides[1], sides[0] * sides[1]))
    tokens = (h * w).astype(np.int64)
    return tokens[tokens <= 16_384][:count]


def sorting(lengths: npt.NDArray[np.integer]) -> float:
    """Returns the CPU seconds that np.sort takes: the median of five."""
    return statistics.median(cpu(lambda: np.sort(lengths))[1] for _ in range(5))


def checked(lengths: npt.NDArray[np.integer], capacity: int, **options: Any) -> tuple[Packing, float, float]:
    """Returns a packing and the CPU seconds of packing and of checking its certificate, both checked."""
    packing, seconds = cpu(lambda: pack(lengths, capacity, **options))
    limit = options.get("max_segments")
    check_packing(lengths, capacity, packing, limit)
    _, checking = cpu(lambda: check_certificate(lengths, capacity, packing, limit))
    return packing, seconds, checking


def verdict(packing: Packing) -> str:
    """Returns bins, bound, gap in percent, and whether that is proven optimal."""
    gap = packing.num_bins - packing.bound
    verdict = "proven" if packing.proven_optimal else f"open +{gap}"
    return f"{packing.num_bins:>9} {packing.bound:>9} {100 * gap / max(1, packing.bound):>8.4f} {verdict:<9}"


def best_fit_loop(lengths: list[int], capacity: int) -> int:
    """Returns the bins of best-fit decreasing one example at a time, as TRL does it: a segment tree over residuals."""
    size = 1 << (capacity - 1).bit_length()
    tree = [0] * (2 * size)

    def put(residual: int, value: int) -> None:
        at = size + residual - 1
        tree[at] = value
        while at > 1:
            at >>= 1
            left, right = tree[2 * at], tree[2 * at + 1]
            tree[at] = left if left >= right else right

    put(capacity, capacity)
    bins_of: dict[int, deque[int]] = defaultdict(deque)
    bins: list[list[int]] = []
    for example, length in enumerate(sorted(lengths, reverse=True)):
        at = 1
        while at < size:
            at = 2 * at if tree[2 * at] >= length else 2 * at + 1
        residual = tree[at]
        if residual < capacity:
            chosen = bins_of[residual].popleft()
            if not bins_of[residual]:
                put(residual, 0)
        else:
            chosen = len(bins)
            bins.append([])
        bins[chosen].append(example)
        residual -= length
        if residual:
            bins_of[residual].append(chosen)
            put(residual, residual)
    return len(bins)


def trl_bins(lengths: npt.NDArray[np.integer], capacity: int) -> Callable[[], int] | None:
    """Returns TRL's own packer on examples of these lengths, one byte a token, or None where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        return None
    import datasets
    import pyarrow as pa
    import trl

    datasets.disable_caching()
    datasets.disable_progress_bars()
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    tokens = pa.LargeListArray.from_arrays(offsets, np.zeros(offsets[-1], np.int8))
    dataset = datasets.Dataset(pa.table({"input_ids": tokens}))
    # TRL packs 1,000 examples at a time unless reported otherwise
    return lambda: len(trl.pack_dataset(dataset, capacity, map_kwargs={"batch_size": len(lengths)}))


def first_fit_over_open_bins(lengths: list[int], capacity: int) -> int:
    """Returns the bins of first-fit over a few open bins, all closed when an example fits none (as in Grain)."""
    open_bins: list[int] = []
    closed = 0
    for length in lengths:
        for place, load in enumerate(open_bins):
            if load + length <= capacity:
                open_bins[place] += length
                break
        else:
            if len(open_bins) == OPEN_BINS:
                closed += OPEN_BINS
                open_bins = []
            open_bins.append(length)
    return closed + len(open_bins)


def next_fit(lengths: list[int], capacity: int) -> int:
    """Returns the bins of next-fit: one open bin, closed by the first example that does not fit (torchtune, seqio)."""
    bins, load = 1, 0
    for length in lengths:
        if load + length > capacity:
            bins, load = bins + 1, 0
        load += length
    return bins


def tell_sets(quick: bool) -> None:
    """Prints every dataset at every capacity and N."""
    print(f"\n{'set':<24} {'L':>5} {'N':>8} {'K':>5} {BINS} {'CPU s':>8} {'check s':>8} / sort")
    for name, capacities in CAPACITIES.items():
        for capacity in capacities:
            for count in (10**3, 10**4, 10**5) if quick else (10**3, 10**4, 10**5, 10**6, 10**7):
                lengths = drawn(name, count)
                sort_s = sorting(lengths)
                packing, seconds, checking = checked(lengths, capacity)
                print(
                    f"{name:<24} {capacity:>5} {count:>8} {len(np.unique(lengths)):>5} {verdict(packing)}"
                    f" {seconds:>8.3f} {checking:>8.3f} {seconds / sort_s:>7.1f}",
                    flush=True,
                )
    for name, (capacity, optimum) in PUBLISHED.items():
        counts = np.load(LENGTHS / f"{name}_histogram.npy")
        lengths = np.repeat(np.arange(1, capacity + 1, dtype=np.uint16), counts)
        packing, seconds, checking = checked(lengths, capacity)
        print(f"{name:<24} {capacity:>5} {len(lengths):>8} {np.count_nonzero(counts):>5} {verdict(packing)}"
              f" {seconds:>8.3f} {checking:>8.3f} published {optimum}", flush=True)  # fmt: skip


def tell_fresh(quick: bool) -> None:
    """Prints bins and bound of lengths that are drawn afresh, and what bounds the time where they are many."""
    print(
        f"\n{'fresh draws':<16} {'L':>6} {'S':>5} {'N':>9} {'lengths':>8} {'best-fit':>9} {'first-fit':>9} {'next-fit':>9}"
        f" {BINS} {'CPU s':>8}"
    )
    for kind, capacity, limit in (
        *(("sides", 256, None), ("sides", 1_024, None), ("clips", 16_384, None), ("native photos", 16_384, None)),
        *(("videos", 65_536, 64), ("videos", 65_536, None), ("long videos", 65_536, 64)),
    ):
        for count in (10**3, 10**4, 10**5) if quick else (10**3, 10**4, 16_384, 10**5, 10**6, 10**7):
            lengths = fresh(kind, count)
            packing, seconds, _ = checked(lengths, capacity, max_segments=limit)
            greedy = pack(lengths, capacity, max_segments=limit, method="best-fit").num_bins
            others = f"{'-':>9} {'-':>9}"
            if limit is None and count <= 10**5:
                others = " ".join(f"{of(lengths.tolist(), capacity):>9}" for of in (first_fit_over_open_bins, next_fit))
            print(
                f"{kind:<16} {capacity:>6} {limit or '-':>5} {count:>9} {len(np.unique(lengths)):>8} {greedy:>9} "
                f"{others} {verdict(packing)} {seconds:>8.2f}",
                flush=True,
            )


def tell_resources(quick: bool) -> None:
    """Prints the bins of examples that use tokens and a second resource: by order of size alone, and by all that is tried."""
    print(f"\n{'two resources':<16} {'N':>9} {'by size':>9} {BINS} {'CPU s':>8}")
    rng = np.random.default_rng(0)
    for kind in ("text", "cost", "tiles"):
        count = 500 if quick else 2_000
        tokens = rng.choice(np.load(LENGTHS / "images_and_clips_4096.npy"), count).astype(np.int64)
        # texts as long in the middle as 55 tokens, the square of the tokens, tiles of 256
        words = np.minimum(256, np.exp(rng.normal(4, 0.8, count))).astype(np.int64)
        other = {"text": words, "cost": tokens * tokens // 4_096, "tiles": 1 + tokens // 256}[kind]
        second = {"text": int(1.02 * 8_192 * words.sum() / tokens.sum()), "cost": 8_192, "tiles": 36}[kind]
        rows, capacity = np.stack([tokens, other], axis=1), [8_192, second]
        packing, seconds = cpu(lambda rows=rows, capacity=capacity: pack(rows, capacity))
        check_packing(rows, capacity, packing)
        check_certificate(rows, capacity, packing)
        by_size = pack(rows, capacity, method="best-fit").num_bins
        print(f"tokens and {kind:<5} {count:>9} {by_size:>9} {verdict(packing)} {seconds:>8.2f}", flush=True)


def tell_fast(quick: bool) -> None:
    """Prints the fast path against np.sort and a best-fit loop."""
    print(
        f"\n{'best-fit':<24} {'L':>5} {'N':>8} {'dtype':>6} {'CPU s':>8} {'np.sort s':>9} {'ratio':>6}"
        f" {'loop s':>8} {'faster':>6} {'TRL s':>8} {'faster':>6}"
    )
    for name, capacity in (
        ("side_uniform_64_256", 256),
        ("images_and_clips_4096", 4096),
        ("native_photos_16384", 16384),
    ):
        for count in (10**5, 10**6) if quick else (10**5, 10**6, 10**7):
            for dtype in (np.uint16, np.int64):
                lengths = drawn(name, count).astype(dtype)
                sort_s = sorting(lengths)
                runs = [cpu(lambda lengths=lengths, capacity=capacity: pack(lengths, capacity, method="best-fit"))
                        for _ in range(3)]  # fmt: skip
                seconds = statistics.median(run[1] for run in runs)
                line = f"{name:<24} {capacity:>5} {count:>8} {np.dtype(dtype).name:>6} {seconds:>8.4f} {sort_s:>9.4f} {seconds / sort_s:>6.2f}"
                if count <= 10**6 and dtype == np.uint16:
                    as_list = lengths.tolist()
                    bins, loop_s = cpu(lambda as_list=as_list, capacity=capacity: best_fit_loop(as_list, capacity))
                    assert bins == runs[0][0].num_bins
                    line += f" {loop_s:>8.2f} {loop_s / seconds:>5.0f}x"
                    if trl_pack := trl_bins(lengths, capacity):
                        trl_s = cpu(trl_pack)[1]
                        line += f" {trl_s:>8.2f} {trl_s / seconds:>5.0f}x"
                print(line, flush=True)


def tell_memory(_: bool) -> None:
    """Prints the peak above the input at N = 1e7, each in a process of its own."""
    print("\npeak memory above the input, N = 1e7")
    for name, capacity in (("side_uniform_64_256", 256), ("side_uniform_64_256", 1024), ("native_photos_16384", 16384)):
        for method in ("best-fit", "auto"):
            code = f"import packing; packing.tell_peak({name!r}, {capacity}, {method!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True,
                capture_output=True, text=True,
            )  # fmt: skip
            print(f"{name:<24} {capacity:>5} {method:<8} {done.stdout.strip()}", flush=True)


def tell_peak(name: str, capacity: int, method: Any) -> None:
    """Prints by how much packing raises this process's peak memory."""
    pack(drawn(name, 10**4), capacity, method=method)  # what is imported is imported by now
    lengths = drawn(name, 10**7)
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held
    pack(lengths, capacity, method=method)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(f"{(peak - held) / 2**20:>6.0f} MiB, 76 of them the answer")


def tell_field(quick: bool) -> None:
    """Prints how many bins the packers in use need above ours, in percent of ours."""
    count = 10**4 if quick else 10**5
    packers = {
        "best-fit decr.": best_fit_loop,
        f"first-fit {OPEN_BINS} open": first_fit_over_open_bins,
        "next-fit": next_fit,
    }
    print(f"\n{'N = ' + str(count):<24} {'L':>5} {BINS} " + " ".join(f"{n:>17}" for n in packers))
    for name, capacities in CAPACITIES.items():
        for capacity in capacities:
            lengths = drawn(name, count)
            packing, _, _ = checked(lengths, capacity)
            as_list = lengths.tolist()
            above = [100 * (packer(as_list, capacity) / packing.num_bins - 1) for packer in packers.values()]
            print(
                f"{name:<24} {capacity:>5} {verdict(packing)} " + " ".join(f"{a:>+16.2f}%" for a in above), flush=True
            )


def tell_segments(quick: bool) -> None:
    """Prints sets where max_segments binds."""
    print(f"\n{'max_segments':<24} {'L':>5} {'S':>3} {'N':>8} {'best-fit':>9} {BINS} {'CPU s':>8} {'check s':>8}")
    for name, capacity, limits in SEGMENTS:
        for limit in limits:
            for count in (10**3, 10**4) if quick else (10**3, 10**4, 10**5, 10**6):
                lengths = drawn(name, count)
                greedy = pack(lengths, capacity, max_segments=limit, method="best-fit").num_bins
                packing, seconds, checking = checked(lengths, capacity, max_segments=limit)
                print(
                    f"{name:<24} {capacity:>5} {limit:>3} {count:>8} {greedy:>9} {verdict(packing)}"
                    f" {seconds:>8.3f} {checking:>8.3f}",
                    flush=True,
                )


def classical(quick: bool) -> Iterator[tuple[str, npt.NDArray[np.int64], int]]:
    """Yields (class, lengths, capacity)."""
    rng = np.random.default_rng(0)
    of_each = 3 if quick else 20
    for count in (120, 250, 500, 1000):
        for _ in range(of_each):
            yield f"uniform {count}", rng.integers(20, 101, count), 150
    for count in (60, 120, 249, 501):
        for _ in range(of_each):
            first = rng.integers(380, 491, count // 3)
            second = rng.integers(250, (1000 - first) // 2 + 1)
            yield f"triplets {count}", np.concatenate([first, second, 1000 - first - second]), 1000
    found = 0
    while found < (4 if quick else 28):
        lengths = rng.integers(1, 801, int(rng.choice([160, 180, 200])))
        if not pack(lengths, 1000, method="best-fit").proven_optimal:
            found += 1
            yield "like Hard28", lengths, 1000


def tell_classical(quick: bool) -> None:
    """Prints the classical classes: how many are proven optimal, the largest gap, CPU seconds."""
    rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, lengths, capacity in classical(quick):
        packing, seconds, _ = checked(lengths, capacity)
        rows[name].append((packing.num_bins - packing.bound, seconds))
    print(f"\n{'class':<16} {'cases':>5} {'proven':>6} {'gap <=':>6} {'CPU s median':>13} {'most':>7}")
    for name, cases in rows.items():
        gaps, seconds_ = zip(*cases, strict=True)
        print(
            f"{name:<16} {len(cases):>5} {gaps.count(0):>6} {max(gaps):>6} {statistics.median(seconds_):>13.3f} {max(seconds_):>7.2f}"
        )


def main() -> None:
    """Prints the machine and the sections asked for."""
    sections = {
        "sets": tell_sets, "fresh": tell_fresh, "resources": tell_resources, "fast": tell_fast, "memory": tell_memory,
        "field": tell_field, "segments": tell_segments, "classical": tell_classical,
    }  # fmt: skip
    options = read(__doc__, {"quick": False, "only": ",".join(sections)})
    say_where("ortools")
    for name in options.only.split(","):
        sections[name](options.quick)


if __name__ == "__main__":
    main()
