"""JPEGs whose decoder warns: refused, or kept with the warning in their record and in the report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result
from support.media_files import photo

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image

Run = Callable[..., Result]

OPTIONS = ("--workers", 1, "--sequence-length", 64, "--resolution", "side:32-64")
CUT = "Premature end of JPEG file"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two valid images and one that is cut."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(photo((120, 160)))
    (folder / "cut.jpg").write_bytes(photo((120, 160))[:-300])
    return folder


def test_a_warning_is_an_error_unless_somebody_keeps_it() -> None:
    whole, warned = photo((120, 160)), []
    with pytest.raises(DecodeError, match=CUT):
        image.decode(whole[:-300], 48, 64)
    shown_THWC, size = image.decode(whole[:-300], 48, 64, warned=warned)
    assert (shown_THWC.shape, size, warned) == ((1, 48, 64, 3), (120, 160), [CUT])
    # what is there is as in the whole image
    sound_THWC = image.decode(whole, 48, 64, warned=warned)[0]
    assert np.array_equal(shown_THWC[:, :20], sound_THWC[:, :20]) and len(warned) == 1
    # with an odd header as well
    odd = whole[:-300].replace(b"\xff\xdb", b"\x12\x34\xff\xdb", 1)
    assert np.array_equal(image.decode(odd, 48, 64, warned=[])[0], shown_THWC)
    with pytest.raises(DecodeError):
        image.decode(b"\xff\xd8\xff no picture", 48, 64, warned=warned)
    assert len(warned) == 1


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.slow
def test_what_is_kept_with_a_warning_is_recorded_and_counted(
    isolation: str, photos: Path, tmp_path: Path, run: Run
) -> None:
    options = (*OPTIONS, "--decode-isolation", isolation)
    assert run("build", photos, "--output", tmp_path / "strict", *options).code == 0
    assert pq.read_table(tmp_path / "strict/rejects.parquet")["reason"].to_pylist() == ["broken"]
    report = json.loads((tmp_path / "strict/report.json").read_text())
    assert report["decoder_warnings"] == {"num_examples": 0, "texts": {}}

    built = run("build", photos, "--output", tmp_path / "kept", "--on-decoder-warning", "keep", *options)
    assert (built.code, built.err) == (0, "")
    extras = {
        segment["source"]: segment["extra"]
        for path in (tmp_path / "kept").glob("sequences/part-*")
        for segments in pq.read_table(path, columns=["segments"])["segments"].to_pylist()
        for segment in segments
    }
    assert extras == {
        "photos/a.jpg": None,
        "photos/b.jpg": None,
        "photos/cut.jpg": json.dumps({"decoder_warning": CUT}, separators=(",", ":")),
    }
    report = json.loads((tmp_path / "kept/report.json").read_text())
    assert report["decoder_warnings"] == {"num_examples": 1, "texts": {CUT: 1}}
    assert "decoder warnings kept     1 examples" in built.out and CUT in built.out
    assert CUT in (tmp_path / "kept/report.html").read_text()
    manifest = json.loads((tmp_path / "kept/manifest.json").read_text())
    assert manifest["config"]["on_decoder_warning"] == "keep" and manifest["totals"]["num_rejects"] == 0
    assert run("verify", tmp_path / "kept").code == 0
