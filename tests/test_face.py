"""`import patchpack`: what it gives, what it does not load, and that nothing global is changed by it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import patchpack

FACE = {
    *(
        "build",
        "build_splits",
        "compare",
        "diff",
        "plan",
        "report",
        "status",
        "submit",
        "verify",
        "BuildConfig",
        "PlanConfig",
        "BuildFailed",
        "TooManyRejects",
    ),
    *(
        "ShardWriter",
        "pack_arrays",
        "pack",
        "pack_stream",
        "check_packing",
        "check_certificate",
        "Packing",
        "DecodeError",
        "FormatError",
    ),
    *("Layout", "Manifest", "Shard", "read_manifest", "read_shard_table", "sequence_schema"),
    *("Dataset", "PackedShards", "Mixture", "StreamedShards", "Batch", "__version__"),
}

# what a program may find changed, as text
STATE = """
def state():
    import logging, os, signal, sys, threading, warnings
    from PIL import Image, TiffImagePlugin
    return {
        "pixels": Image.MAX_IMAGE_PIXELS, "tiff": repr(TiffImagePlugin.ImageFileDirectory_v2.load),
        "handlers": repr(logging.getLogger().handlers), "level": logging.getLogger().level,
        "beam": logging.getLogger("apache_beam").level, "disabled": logging.root.manager.disable,
        "environment": dict(os.environ), "hook": repr(threading.excepthook),
        "signals": repr([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]), "folder": os.getcwd(),
        "path": sys.path[:],
    }
"""


def run_script(text: str, cwd: Path, *arguments: object) -> str:
    """Runs a script as a user's program, with its folder first on the path, and returns what it prints."""
    (cwd / "program.py").write_text(text)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, "program.py", *map(str, arguments)], cwd=cwd, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_the_public_face_and_every_name_is_there() -> None:
    assert set(patchpack.__all__) == FACE
    assert list(patchpack.__all__) == sorted(patchpack.__all__)
    for name in FACE:
        assert getattr(patchpack, name) is not None
        assert name in dir(patchpack)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        patchpack.nothing  # noqa: B018


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    program = "import patchpack, sys; print(patchpack.__version__, *sys.modules)"
    version, *loaded = run_script(program, tmp_path).split()
    assert version == patchpack.__version__
    assert not {"apache_beam", "torch", "numpy", "pyarrow", "PIL", "av", "ortools"} & set(loaded)


@pytest.mark.slow
def test_it_works_beside_folders_of_the_same_names(media: Path, tmp_path: Path) -> None:
    for name in ("trainer", "pipeline", "schemas", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the {name} of somebody else')")
    program = f"""
import json, sys
import patchpack
{STATE}
before = state()
if __name__ == "__main__":
    planned = patchpack.plan(sys.argv[1], sequence_length=512)
    report = patchpack.build([sys.argv[1]], "out", sequence_length=512, labels="folder", workers=2)
    assert patchpack.report("out") == report
    assert patchpack.verify("out") == []
    num_tokens = sum(int((batch["segment_ids"] > 0).sum())
                     for batch in patchpack.PackedShards("out", batch_size=1))
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    print(json.dumps([changed, planned["planned"]["num_tokens"], report["totals"]["stored"]["num_tokens"], num_tokens]))
"""
    changed, planned, stored, read = json.loads(run_script(program, tmp_path, media))
    assert planned == stored == read > 0
    assert changed == []


@pytest.mark.slow
def test_importing_every_module_changes_nothing_global(tmp_path: Path) -> None:
    program = f"""
import importlib, json, pkgutil
{STATE}
import patchpack
before = state()
names = [patchpack.__name__]
for package in ("pipeline", "schemas", "trainer"):
    home = importlib.import_module("patchpack." + package)
    names += [module.name for module in pkgutil.walk_packages(home.__path__, home.__name__ + ".")]
for name in names:
    # Beam logs at import, and gives the root logger a handler for it: `patchpack.build` keeps that off; adapters import other libraries
    if not name.startswith(("patchpack.pipeline.execution.", "patchpack.trainer.adapters.")):
        importlib.import_module(name)
after = state()
print(json.dumps([len(names), [name for name in before if before[name] != after[name]]]))
"""
    num_modules, changed = json.loads(run_script(program, tmp_path))
    assert num_modules > 80
    assert changed == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 0}, "--sequence-length 0: no token fits; the least is 1; leave it out for 1024"),
        ({"sequence_length": "long"}, "--sequence-length 'long': not valid (invalid literal for int() with base 10: 'long')"),
        ({"sequence_length": 1.5}, "--sequence-length 1.5: float; it takes int"),
        ({"tubelet": (1, 16)}, "--tubelet (1, 16): tuple; it takes tuple[int, int, int]"),
        ({"views": True}, "--views True: bool; it takes int"),
        ({"resume": 1}, "--resume 1: int; it takes bool"),
        ({"oversize": "explode"}, "--oversize explode: no such choice; it takes shrink, reject"),
        ({"shard_bytes": "many"}, "--shard-bytes 'many': not valid (it is a number with a unit or without, such as 256MB, 1.5GiB or 300000)"),
    ],
)  # fmt: skip
def test_a_bad_option_raises_when_the_config_is_made(
    options: dict[str, object], message: str, media: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as raised:
        patchpack.BuildConfig(**options)
    assert str(raised.value) == message
    if "resume" not in options:
        with pytest.raises(ValueError, match="^--"):
            patchpack.build(media, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_options_are_read_as_they_are_typed() -> None:
    config = patchpack.BuildConfig(shard_bytes="300MB", tubelet=[2, 16, 16], exclude="*.gif", fps=4, views="2")
    assert (config.shard_bytes, config.tubelet, config.exclude) == (300_000_000, (2, 16, 16), ("*.gif",))
    assert (config.fps, config.views) == (4, 2)
    with pytest.raises(TypeError, match="squence_length"):
        patchpack.BuildConfig(squence_length=3)


@pytest.mark.slow
def test_too_many_rejects_come_with_the_report(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.jpg").write_bytes(b"no picture")
    from PIL import Image

    Image.new("RGB", (64, 64)).save(photos / "good.png")
    with pytest.raises(patchpack.TooManyRejects) as raised:
        patchpack.build(photos, tmp_path / "out", workers=1)
    assert raised.value.report["totals"]["num_rejected_inputs"] == 100
    assert not (tmp_path / "out" / "manifest.json").exists()
    report = patchpack.build([], tmp_path / "out", resume=True, max_reject_fraction=1.0, workers=1)
    assert report == patchpack.report(tmp_path / "out")
