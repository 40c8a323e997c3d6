"""Golden datasets of every version stay readable for ever: the same tokens, positions, names and labels, by every reader.

`tests/golden/NAME` is a dataset as one version wrote it, and `expected.json` what it holds, noted when it was made
(`tests/support/golden.py`). None is ever changed; a version that writes other bytes adds its own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from support.golden import content

from patchpack.pipeline.verification.dataset import verify
from patchpack.schemas import Dataset, read_manifest
from patchpack.schemas.geometry import NO_CODEC
from patchpack.schemas.manifest import FORMAT_VERSION, UNDERSTOOD
from patchpack.schemas.sequence import array_columns
from patchpack.trainer.data import PackedShards

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").iterdir() if path.is_dir())


def expected(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "expected.json").read_text())
    return rows


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_dataset_of_any_version_reads_as_it_was_written(folder: Path) -> None:
    dataset, due = Dataset(str(folder)), expected(folder)
    assert len(dataset) == len(due) > 0
    for index, row in enumerate(due):
        sequence = dataset.sequence(index)
        for name, (dtype, _) in array_columns(dataset.layout).items():
            stored = np.ascontiguousarray(sequence[name].astype(dtype))
            assert xxhash.xxh3_64_hexdigest(stored) == row["raw"][name], (index, name)
        segments = row["segments"]
        count = len(segments)
        assert sequence["num_segments"] == count and sequence["num_tokens"] == row["num_tokens"]
        for name, field in (("starts", "start"), ("lengths", "num_tokens")):
            assert sequence[name][:count].tolist() == [segment[field] for segment in segments]
        assert sequence["labels"][:count].tolist() == [segment["labels"][0] for segment in segments]
        assert sequence["grids"][:count, 1].tolist() == [segment["grid_h"] for segment in segments]
        assert dataset.sources([index]) == [segment["source"] for segment in segments]
        for slot, segment in enumerate(segments):
            assert (index, slot) in dataset.find(segment["example_id"])
    views = len(dataset.shards_of_view)
    loaders = [PackedShards(str(folder), batch_size=1, epoch=epoch) for epoch in range(views)]
    assert sorted(int(batch["index"][0]) for loader in loaders for batch in loader) == list(range(len(due)))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_it_is_sound_and_itself(folder: Path) -> None:
    assert verify(str(folder)) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format_version"] <= FORMAT_VERSION and set(manifest["requires"]) <= UNDERSTOOD
    if read_manifest(str(folder)).layouts[0].codec == NO_CODEC:
        # nobody has changed it: by pyarrow alone
        assert content(folder) == expected(folder)


def test_every_feature_of_the_reader_has_its_golden_dataset() -> None:
    used = {feature for folder in GOLDEN for feature in json.loads((folder / "manifest.json").read_text())["requires"]}
    assert used == UNDERSTOOD
