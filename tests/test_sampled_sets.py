"""Datasets by each policy: verified, as planned, and every token where pixel, crop, flip and kept order put it."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result
from PIL import Image

from patchpack import PackedShards
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.patchify import mean_colour, patchify_layout
from patchpack.pipeline.sampling.dropping import kept_tokens
from patchpack.schemas import Layout, read_manifest
from patchpack.schemas.geometry import Box, Grid, grid_positions
from patchpack.schemas.sequence import array_columns

Run = Callable[..., Result]
OPTIONS = ("--workers", 1, "--media-backend", "pillow", "--sequence-length", 256)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of many sizes."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    sizes = [(200 + 37 * n % 170, 150 + 53 * n % 230) for n in range(12)]
    for number, (height, width) in enumerate(sizes):
        slope = np.linspace((0, 90, 200), (250, 30, 10), height * width).reshape(height, width, 3)
        Image.fromarray(slope.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def stored(folder: Path) -> list[tuple[Layout, dict[str, Any]]]:
    """Returns every stored sequence with its layout, arrays as arrays."""
    manifest, rows = read_manifest(str(folder)), []
    for shard in pq.read_table(folder / "shards.parquet").to_pylist():
        layout = manifest.layouts[shard["layout"]]
        for row in pq.read_table(folder / shard["path"]).to_pylist():
            for name, (dtype, shape) in array_columns(layout).items():
                row[name] = np.frombuffer(row[name], dtype).reshape(shape)
            rows.append((layout, row))
    return rows


def due_tokens(segment: dict[str, Any], layout: Layout, photos: Path) -> np.ndarray:
    """Returns all tokens of a segment's grid, made from its record alone."""
    data = (photos.parent / segment["source"]).read_bytes()
    box = Box(*(segment[f"crop_{side}"] for side in Box._fields))
    size = segment["valid_height"], segment["valid_width"]
    frames, _ = image.decode(data, *size, box=box)
    canvas = np.empty((1, segment["height"], segment["width"], 3), np.uint8)
    canvas[:] = mean_colour(layout)
    canvas[:, : size[0], : size[1]] = frames[:, :, ::-1] if segment["flipped"] else frames
    return patchify_layout(canvas, layout)


CASES: dict[str, tuple[object, ...]] = {
    "area": ("--resolution", "area:4096-30000~normal(0,0.5)"),
    "budgets": ("--resolution", "tokens:32,64,128"),
    "pix2struct": ("--resolution", "pix2struct:128"),
    "pixels": ("--resolution", "pixels:3136-40000", "--tubelet", "1,14,14", "--grid-multiple", 2),
    "square": ("--resolution", "square:96"),
    "never larger": ("--resolution", "side:100-600", "--upsample", "never"),
    "padded": ("--resolution", "native", "--fit", "pad", "--mean", "0.1,0.5,0.9"),
    "cut": ("--resolution", "tokens:100", "--fit", "crop"),
    "part": ("--resolution", "tokens:64", "--crop", "inception:0.2-0.8", "--flip", "--views", 2),
    "sizes": ("--patch-sizes", "8,16,32", "--resolution", "side:64-128", "--views", 2),
    "cubes": ("--tubelet", "3,7,7", "--stride", "2,4,4", "--resolution", "tokens:200", "--grid-multiple", 2),
    "aligned": ("--align-tokens", 16, "--resolution", "side:40-100"),
    "dropped": ("--drop-tokens", "beta:0.4,0.8", "--resolution", "side:64-200", "--views", 2),
    "dropped by size": ("--drop-tokens", "resolution:0.1-0.6", "--resolution", "side:64-256", "--drop-slack", 0),
    "everything": (
        *("--patch-sizes", "8,16", "--drop-tokens", "schedule:0.6->0.1", "--views", 3, "--flip", "--fit", "pad"),
        *("--crop", "inception:0.5-1", "--align-tokens", 8, "--resolution", "side:32-90"),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow_beyond(2)
def test_what_is_planned_is_what_is_written(name: str, photos: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    ended = run("build", photos, "--output", folder, *OPTIONS, *CASES[name])
    assert ended.code == 0, ended.err
    assert run("verify", folder).code == 0
    views, layouts, slots = defaultdict(set), set(), 0
    for layout, row in stored(folder):
        layouts.add(layout.tubelet)
        for number, segment in enumerate(row["segments"], start=1):
            count, start = segment["num_tokens"], segment["start"]
            assert start % layout.align_tokens == 0
            slots += layout.slots(count)
            views[segment["view"]].add(segment["source"])
            grid = Grid(segment["grid_t"], segment["grid_h"], segment["grid_w"])
            kept = np.arange(grid.num_tokens)
            if layout.keep_order:
                kept, ranks = kept_tokens(grid.num_tokens, count, 0, segment["example_id"], segment["view"])
                assert np.array_equal(row["keep_order"][start : start + count], ranks)
            assert np.array_equal(row["positions"][start : start + count], grid_positions(grid)[kept])
            assert (row["segment_ids"][start : start + count] == number).all()
            due = due_tokens(segment, layout, photos)[kept]
            assert np.array_equal(row["tokens"][start : start + count], due), segment["source"]
        assert (row["segment_ids"] != 0).sum() == row["num_tokens"]
    assert all(len(sources) == 12 for sources in views.values())
    assert (
        len(views)
        == (CASES[name] + ("--views", 1))[CASES[name].index("--views") + 1 if "--views" in CASES[name] else -1]
    )
    assert len(layouts) == {"sizes": 3, "everything": 2}.get(name, 1)
    bound = json.loads((folder / "manifest.json").read_text())["bounds"]
    assert sum(entry["num_sequences"] for entry in bound) == len(stored(folder))


@pytest.mark.slow
def test_a_loader_gives_the_order_to_keep_and_skips_other_layouts(photos: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    options = ("--patch-sizes", "8,16", "--drop-tokens", "constant:0.3", "--resolution", "side:64-100")
    assert run("build", photos, "--output", folder, *OPTIONS, *options).code == 0
    for number, width in enumerate((192, 768)):
        for batch in PackedShards(str(folder), batch_size=1, layout=number):
            assert batch["tokens"].shape == (1, 256, width)
            ids, order = batch["segment_ids"][0], batch["keep_order"][0]
            for segment in range(1, int(batch["num_segments"]) + 1):
                assert sorted(order[ids == segment].tolist()) == list(range(int((ids == segment).sum())))
            assert (order[ids == 0] == 0).all()


def test_a_damaged_order_is_found(photos: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    options = ("--drop-tokens", "constant:0.3", "--resolution", "side:64-100")
    assert run("build", photos, "--output", folder, *OPTIONS, *options).code == 0
    path = next((folder / "sequences").iterdir())
    _, row = stored(folder)[0]
    place = path.read_bytes().index(row["keep_order"].tobytes())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    ended = run("verify", folder)
    assert ended.code == 1 and "keep_order is no order" in ended.err


@pytest.mark.slow
def test_another_number_of_workers_and_inputs_gives_the_same_bytes(photos: Path, tmp_path: Path, run: Run) -> None:
    names = sorted(path.name for path in photos.iterdir())
    options = (*OPTIONS[2:], *CASES["everything"], "--shard-bytes", 300_000, "--group-size", 5)
    assert run("build", photos, "--output", tmp_path / "one", "--workers", 1, *options).code == 0
    assert run("build", f"{photos}/*", "--output", tmp_path / "two", "--workers", 2, *options).code == 0
    files = sorted(path.name for path in (tmp_path / "one/sequences").iterdir())
    assert len(files) > 6 and len(names) == 12
    for name in files:
        one, two = ((tmp_path / which / "sequences" / name).read_bytes() for which in ("one", "two"))
        assert one == two


@pytest.mark.slow
def test_inspection_tells_crop_padding_and_mirror(photos: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    assert run("build", photos, "--output", folder, *OPTIONS, *CASES["everything"]).code == 0
    words = "".join(run("inspect", folder, n).out for n in range(len(stored(folder))))
    assert "mirrored" in words and "the rest is padding" in words and "part " in words
    assert run("inspect", folder, 0, "--image", tmp_path / "a.png").code == 0
    assert Image.open(tmp_path / "a.png").width > 100
