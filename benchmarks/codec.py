"""What a codec of tokens saves and costs: size, and tokens a second of one core, both ways.

    python benchmarks/codec.py [FOLDER]

FOLDER: media, by default those of the demo, which are drawn: smooth, and smaller than real ones. Two datasets are built of it, photos in
tubelets of 1x16x16 (P = 768) and clips in tubelets of 2x16x16 (P = 1536), each of sequences of 1,024 tokens, of which at most
16 are measured. Raw is a copy, both ways; the others are what pyarrow has, over the tokens as they are. Sizes are of the
tokens alone, padding included. The last line is what zstd takes of the one before: no filter can be faster than that.
CPU time of one thread, the ways taking turns, medians of 9 rounds; the digest is not counted.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from harness import medians, read, say_where

import patchpack
from patchpack.pipeline.demo import draw_media
from patchpack.pipeline.stages.list import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from patchpack.schemas import Layout, Shard, read_shard_table
from patchpack.schemas.codec import decode, encode

ROUNDS = 9
MOST_SEQUENCES = 16
# name, tubelet, suffixes that are left out
SETS = (("photos", (1, 16, 16), VIDEO_SUFFIXES), ("video", (2, 16, 16), IMAGE_SUFFIXES))
PLAIN = {"zstd": pa.Codec("zstd", compression_level=1), "lz4": pa.Codec("lz4")}
OURS, PART = "gradient-zstd", "  of it zstd"


def sequences(media: str, output: Path, tubelet: tuple[int, int, int], left_out: frozenset[str]) -> list[np.ndarray]:
    """Returns tokens of a dataset of some of the media, (L, P) uint8 each."""
    found = {path.suffix for path in Path(media).rglob("*")}
    patchpack.build(
        [media],
        output,
        tubelet=tubelet,
        exclude=tuple(f"*{suffix}" for suffix in sorted(found) if suffix.lower() in left_out),
        # sizes are drawn, and large ones compress better
        views=4,
        max_reject_fraction=1.0,
        workers=1,
    )
    tokens = []
    for name in read_shard_table(str(output))["path"].to_pylist():
        with Shard(str(output / name)) as shard:
            tokens += [shard.read_array("tokens", row) for row in range(shard.num_sequences)]
    return [tokens[place] for place in np.linspace(0, len(tokens) - 1, min(MOST_SEQUENCES, len(tokens))).astype(int)]


def report(name: str, tokens: list[np.ndarray], layout: Layout) -> None:
    """Prints one line a codec."""
    frames = [encode(tokens_LP, layout) for tokens_LP in tokens]
    size, out_LP = tokens[0].nbytes, np.empty_like(tokens[0])
    contents = [pa.decompress(frame, size, "zstd") for frame in frames]

    def copy() -> None:
        for tokens_LP in tokens:
            np.copyto(out_LP, tokens_LP)

    sizes = {"raw": size * len(tokens), OURS: sum(map(len, frames))}
    encoding: dict[str, Callable[[], object]] = {
        "raw": copy,
        OURS: lambda: [encode(tokens_LP, layout) for tokens_LP in tokens],
        PART: lambda: [PLAIN["zstd"].compress(content) for content in contents],
    }
    decoding: dict[str, Callable[[], object]] = {
        "raw": copy,
        OURS: lambda: [decode(frame, layout, out_LP, "here") for frame in frames],
        PART: lambda: [PLAIN["zstd"].decompress(frame, size) for frame in frames],
    }
    for plain, codec in PLAIN.items():
        values = [codec.compress(tokens_LP, asbytes=True) for tokens_LP in tokens]
        sizes[plain] = sum(map(len, values))
        encoding[plain] = lambda codec=codec: [codec.compress(tokens_LP) for tokens_LP in tokens]
        decoding[plain] = lambda codec=codec, values=values: [codec.decompress(value, size) for value in values]
    sizes[PART] = sizes[OURS]
    seconds = medians(encoding, ROUNDS), medians(decoding, ROUNDS)
    count = len(tokens) * layout.sequence_length / 1e6
    print(f"\n{name}: {len(tokens)} sequences of {layout.sequence_length} tokens, P = {layout.token_width}")
    print(f"{'':<14} {'ratio':>6} {'encode Mtoken/s':>16} {'decode Mtoken/s':>16} {'decode GB/s':>12}")
    for way in ("raw", *PLAIN, OURS, PART):
        encoded, decoded = (count / each[way] for each in seconds)
        speed = decoded * layout.token_width / 1e3
        print(
            f"{way:<14} {sizes[way] / sizes['raw']:>6.3f} {encoded:>16.2f} {decoded:>16.2f} {speed:>12.2f}", flush=True
        )


def main() -> None:
    """Measures both datasets."""
    given = read(__doc__, folder="").folder
    say_where()
    with tempfile.TemporaryDirectory() as scratch:
        if not given:
            given = str(Path(scratch) / "media")
            draw_media(given)
        for name, tubelet, left_out in SETS:
            tokens = sequences(given, Path(scratch) / name, tubelet, left_out)
            report(name, tokens, Layout(len(tokens[0]), 64, tubelet, codec=OURS))


if __name__ == "__main__":
    main()
