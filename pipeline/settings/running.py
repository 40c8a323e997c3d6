"""Options of what the decoders may take, and of where the work is done."""

from dataclasses import dataclass

from patchpack.options import amount, option
from patchpack.pipeline.rules import default_workers
from patchpack.pipeline.settings.sections import EXECUTION, MEDIA


@dataclass(frozen=True)
class RunningOptions:
    """Limits of the decoders, and the workers."""

    # half a gigabyte in Pillow's four bytes a pixel, which keeps a worker below one; a 108-megapixel phone fits
    max_pixels: int = option(
        120_000_000,
        "reject images and frames of more pixels, counted as four bytes each: WebP, AVIF, TIFF and progressive JPEG "
        "hold more while they are decoded, and reach it earlier",
        section=MEDIA,
        common=True,
        parse=amount,
        metavar="PX",
    )
    # an image's file is held whole, and with the pixels below a worker is to stay under 1 GB
    max_bytes: int = option(
        2**28,
        "reject larger files without reading them",
        section=MEDIA,
        common=True,
        parse=amount,
        metavar="BYTES",
    )
    # of what is left once odd headers are mended, nearly every warning comes with wrong pixels (benchmarks/jpeg_warnings.py)
    on_decoder_warning: str = option(
        "reject",
        "JPEGs whose decoder warns of damage: reject them, or keep what it made of them; segments and report then say",
        section=MEDIA,
        choices=("reject", "keep"),
    )
    # a sandbox costs time on every file (benchmarks/isolation.py), and valid collections crash no decoder
    decode_isolation: str = option(
        "none",
        "process: probe and decode in a sandbox, so that a file that crashes or hangs a decoder is a reject",
        section=MEDIA,
        choices=("none", "process"),
        affects_output=False,
    )
    decode_timeout_s: float | None = option(
        None,
        "with --decode-isolation process: reject a file that takes longer; left out: 60",
        section=MEDIA,
        metavar="SECONDS",
        affects_output=False,
    )

    workers: int = option(
        default_workers(),
        "local worker processes",
        section=EXECUTION,
        common=True,
        default_shown="one a core",
        affects_output=False,
        lasting=False,
    )
    media_backend: str = option(
        "auto",
        "what resizes images: Pillow, or torch (fast), which takes a quarter of the time; auto: torch where it is "
        "installed, the processor has AVX2 and no remote runner is given",
        section=EXECUTION,
        choices=("auto", "pillow", "fast"),
    )
    # a few hundred clips of the default size
    decode_cache_bytes: int = option(
        256_000_000,
        "most bytes of decoded clips that wait, so that clips of one video share a decode; 0: none",
        section=EXECUTION,
        parse=amount,
        metavar="BYTES",
        affects_output=False,
    )
