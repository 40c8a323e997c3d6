"""The contract between the pipeline that writes shards and the trainer that reads them.

Imports numpy, pyarrow and xxhash; nothing of the pipeline and nothing of the trainer.
`docs/format.md` says the same in words, for readers without this code.
"""

from patchpack.schemas.dataset import Dataset
from patchpack.schemas.errors import FormatError
from patchpack.schemas.geometry import Layout
from patchpack.schemas.manifest import Manifest, read_manifest, read_shard_table
from patchpack.schemas.sequence import check_sequence, sequence_digest, sequence_schema
from patchpack.schemas.shard import Shard

__all__ = [
    "Dataset",
    "FormatError",
    "Layout",
    "Manifest",
    "Shard",
    "check_sequence",
    "read_manifest",
    "read_shard_table",
    "sequence_digest",
    "sequence_schema",
]
