"""--media-backend and the extras: decided once, kept, and reported in one line where a library is missing."""

import functools
import importlib.util
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL
from PIL import Image
from support.media_files import exif_of, pixels, saved

from patchpack.pipeline import versions
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.execution import launch, plan_transforms, shard_transforms
from patchpack.pipeline.media import DecodeError, kind_of, resize
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.image import heif
from patchpack.pipeline.media.video.clips import ClipRule
from patchpack.pipeline.stages.probe import probe
from patchpack.pipeline.stages.records import Source

Run = Callable[..., Any]


def test_auto_is_pillow_without_torch_or_avx2_and_fast_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(simd_level: str) -> None:
        monkeypatch.setattr(pa, "runtime_info", lambda: SimpleNamespace(detected_simd_level=simd_level))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(resize, "_torch", object)
    here("avx2")
    assert [resize.resolved(name) for name in ("auto", "pillow", "fast")] == ["fast", "pillow", "fast"]
    here("sse4_2")
    assert [resize.resolved(name) for name in ("auto", "fast")] == ["pillow", "fast"]
    here("avx512")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resize.resolved("auto") == "pillow"

    def missing() -> None:
        raise ImportError("no torch")

    monkeypatch.setattr(resize, "_torch", missing)
    with pytest.raises(
        ValueError,
        match=r"--media-backend fast: torch cannot be imported .*; ./run_pipeline.sh setup fast, or pip install ",
    ) as caught:
        resize.resolved("fast")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_resumed_build_keeps_the_planned_backend(
    media: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("build", *sorted(media.iterdir()), "--output", tmp_path / "shards", "--workers", 1, *SMALL, "--limit", 4)
    assert run(*command, "--media-backend", "pillow").code == 0
    # auto would now be fast
    monkeypatch.setattr(resize, "_torch", lambda: pytest.fail("asked for torch"))
    assert run(*command, "--resume").code == 0
    assert json.loads((tmp_path / "shards/manifest.json").read_text())["config"]["media_backend"] == "pillow"
    assert json.loads((tmp_path / "shards/_plan/plan.json").read_text())["config"]["media_backend"] == "pillow"
    other = run(*command, "--resume", "--media-backend", "auto", "--decode-quality", "exact")
    assert other.code == 2 and "--decode-quality" in other.err


def test_a_worker_without_torch_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchpack.pipeline.config import PlanConfig

    launcher = versions.library_versions("fast")
    assert set(launcher) - set(versions.library_versions("pillow")) == {"torch"}
    worker = shard_transforms._WriteFn("", [], PlanConfig(media_backend="fast"), launcher | {"torch": "2.0"})
    monkeypatch.setattr(versions, "_version", lambda name: "none" if name == "torch" else launcher[name])
    with pytest.raises(RuntimeError, match=r"^worker: torch none \(launcher: 2.0\); [^\n]*$"):
        worker.setup()


def test_a_worker_is_compared_in_what_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = versions.library_versions("fast")
    for name in here:
        worker = shard_transforms._WriteFn("", [], PlanConfig(media_backend="fast"), here | {name: "0.1"})
        if name in ("ortools", "pillow-heif"):
            worker.setup()
            continue
        with pytest.raises(RuntimeError, match=rf"^worker: {name} {re.escape(here[name])} \(launcher: 0.1\); [^\n]*$"):
            worker.setup()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_worker_with_another_reader_of_heic_fails_only_where_it_meets_one(
    workers: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = versions.library_versions("pillow")
    monkeypatch.setattr(launch, "library_versions", lambda backend: mine | {"pillow-heif": "0.1", "ortools": "0.1"})
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.jpg").write_bytes(saved(Image.fromarray(pixels(48, 72)), "JPEG"))
    command = ("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", workers, "--overwrite")
    assert run(*command, "--media-backend", "pillow").code == 0
    # whatever it is called
    (tmp_path / "media/b.jpg").write_bytes(heic())
    ended = run(*command, "--media-backend", "pillow")
    others = f"pillow-heif {mine['pillow-heif']} (launcher: 0.1)"
    assert ended.code == 1
    assert (
        ended.err == f"worker: {others}; workers and launcher run the same versions; install constraints.txt on both\n"
    )


def test_a_worker_with_another_planner_makes_no_plan(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.jpg").write_bytes(saved(Image.fromarray(pixels(48, 72)), "JPEG"))
    mine = versions.planner_version()
    made = functools.partialmethod(plan_transforms.SavePlan.__init__, planner="0.1")
    monkeypatch.setattr(plan_transforms.SavePlan, "__init__", made)
    ended = run("build", tmp_path / "media", "--output", tmp_path / "set", "--workers", 1)
    others = f"ortools {mine} (launcher: 0.1)"
    assert ended.code == 1
    assert (
        ended.err == f"worker: {others}; workers and launcher run the same versions; install constraints.txt on both\n"
    )


def heic(orientation: int = 1) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pillow_heif.register_heif_opener()
    if not pillow_heif.libheif_info()["HEIF"]:
        pytest.skip("this pillow-heif cannot write HEIC")
    return saved(Image.fromarray(pixels(48, 72)), "HEIF", quality=95, exif=exif_of(orientation).tobytes())


def test_heic_is_read_upright_with_the_extra() -> None:
    for orientation, size in ((1, (48, 72)), (6, (72, 48))):
        data = heic(orientation)
        assert kind_of(data[:1024]) == "image" and image.probe(io.BytesIO(data)) == size
        assert image.decode(data, 16, 16)[1] == size
    shown = image.decode(heic(), 48, 72)[0][0].astype(int)
    assert np.abs(shown - pixels(48, 72)).mean() < 4
    with pytest.raises(DecodeError):
        image.decode(heic()[:-300], 16, 16)


def test_heic_without_the_extra_is_a_reject_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif._register.cache_clear()
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100)
    (tmp_path / "a.heic").write_bytes(data)
    (row,) = probe(Source("a.heic", 0, "a.heic", len(data)), str(tmp_path / "a.heic"), ClipRule(), 10**6)
    assert row.reason == "unknown_format" and row.detail.endswith(
        "; ./run_pipeline.sh setup heif, or pip install 'patchpack[heif]'"
    )


def test_pixels_are_counted_by_what_decoding_holds_of_them() -> None:
    picture = Image.fromarray(pixels(100, 100))
    for format, options, most in (("PNG", {}, 10_000), ("WEBP", {}, 42_500), ("JPEG", {"progressive": True}, 22_500)):
        data = saved(picture, format, **options)
        assert image.probe(io.BytesIO(data), most) == (100, 100)
        with pytest.raises(DecodeError, match="--max-pixels") as caught:
            image.probe(io.BytesIO(data), most - 1)
        assert caught.value.reason == "too_large"
        # again where the pixels are made: the file may have been swapped
        assert image.decode(data, 16, 16, max_pixels=most)[1] == (100, 100)
        with pytest.raises(DecodeError, match="--max-pixels"):
            image.decode(data, 16, 16, max_pixels=most - 1)
        with pytest.raises(DecodeError, match="--max-pixels"):
            image.decode_animation(data, (0,), 16, 16, max_pixels=most - 1)


def test_phones_largest_heic_pictures_pass_by_default() -> None:
    class Header:
        format, info = "HEIF", {}

        def __init__(self, width: int, height: int) -> None:
            self.width, self.height = width, height

    for width, height in ((8064, 6048), (8192, 6144)):
        image._check_pixels(Header(width, height), PlanConfig.max_pixels)
