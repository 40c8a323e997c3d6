"""patchpack: images and videos of any size in, pre-packed fixed-shape sequences out.

The public face. Names are looked up when they are first used, so that `import patchpack` loads neither Beam nor torch:

    build, plan, report, verify     what the commands of these names do, as functions, as diff does; build_splits makes several
    compare                         what a build would give under other options: `plan --compare`
    ShardWriter, pack_arrays        tokens of your own in, the same shards out, without Beam
    pack, check_packing, ...        token counts in, bins out, with a proof
    pack_stream                     the same for a stream, window by window
    PackedShards                    batches of torch tensors from a dataset; Mixture: from several; StreamedShards: for torch's DataLoader
    Dataset                         single sequences as numpy arrays, without torch
    read_manifest, Shard, ...       the files of a dataset

The rooms behind it: `schemas` (what is written), `pipeline` (offline: writes it), `trainer` (online: reads it).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchpack.api import build, build_splits, compare, diff, plan, report, status, submit, verify
    from patchpack.pipeline.arrays import ShardWriter, pack_arrays
    from patchpack.pipeline.config import BuildConfig, PlanConfig
    from patchpack.pipeline.errors import BuildFailed, TooManyRejects
    from patchpack.pipeline.media.errors import DecodeError
    from patchpack.pipeline.packing import Packing, check_certificate, check_packing, pack, pack_stream
    from patchpack.schemas import (
        Dataset,
        FormatError,
        Layout,
        Manifest,
        Shard,
        read_manifest,
        read_shard_table,
        sequence_schema,
    )
    from patchpack.trainer.data import PackedShards
    from patchpack.trainer.dataloader import StreamedShards
    from patchpack.trainer.mixture import Mixture
    from patchpack.trainer.slots import Batch
    from patchpack.version import __version__

_HOMES = {
    "patchpack.api": ("build", "build_splits", "compare", "diff", "plan", "report", "status", "submit", "verify"),
    "patchpack.pipeline.arrays": ("ShardWriter", "pack_arrays"),
    "patchpack.pipeline.config": ("BuildConfig", "PlanConfig"),
    "patchpack.pipeline.errors": ("BuildFailed", "TooManyRejects"),
    "patchpack.pipeline.media.errors": ("DecodeError",),
    "patchpack.pipeline.packing": ("Packing", "check_certificate", "check_packing", "pack", "pack_stream"),
    "patchpack.schemas": (
        "Dataset",
        "FormatError",
        "Layout",
        "Manifest",
        "Shard",
        "read_manifest",
        "read_shard_table",
        "sequence_schema",
    ),
    "patchpack.trainer.data": ("PackedShards",),
    "patchpack.trainer.dataloader": ("StreamedShards",),
    "patchpack.trainer.mixture": ("Mixture",),
    "patchpack.trainer.slots": ("Batch",),
    "patchpack.version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "BuildConfig",
    "BuildFailed",
    "Dataset",
    "DecodeError",
    "FormatError",
    "Layout",
    "Manifest",
    "Mixture",
    "PackedShards",
    "Packing",
    "PlanConfig",
    "Shard",
    "ShardWriter",
    "StreamedShards",
    "TooManyRejects",
    "__version__",
    "build",
    "build_splits",
    "check_certificate",
    "check_packing",
    "compare",
    "diff",
    "pack",
    "pack_arrays",
    "pack_stream",
    "plan",
    "read_manifest",
    "read_shard_table",
    "report",
    "sequence_schema",
    "status",
    "submit",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
