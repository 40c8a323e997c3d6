"""What flows between the stages. One input ends as References, a Reject or an Ignored, never as nothing.

    list:   Container -> Source | Reject | Ignored | KeyConflict
    probe:  Source -> Example | Reject | Ignored
    dedupe: Example -> Example | Reject
    sample: Example -> Reference | Reject
    group:  Reference, Reject -> those of one group
    plan:   of one group -> PlannedExample

A stage gives a next stage what it takes; Rejects leave by an output of their own and meet the others again in their
group, and what is ignored is only counted.
"""

import re
from typing import NamedTuple

import xxhash

from patchpack.pipeline.inputs.facts import Facts
from patchpack.schemas.errors import without_secrets
from patchpack.schemas.geometry import Box, Grid


class Part(NamedTuple):
    """Where in a file a source lies: from `offset` on in a tar, or in a row and column of a table; else it is the file."""

    offset: int = -1
    row_group: int = -1
    row: int = -1
    column: str = ""


WHOLE = Part()


class Source(NamedTuple):
    """One listed input. Its file is `path` below the root numbered `root` (_run.json holds the roots), or a part of that.

    `size_bytes` is -1 where only reading shows it. `digest` is of the whole content, where --dedupe asks for it; `head` of its size
    and first SNIFF_BYTES, by which copies are estimated, and 0 before it is probed.
    """

    key: str
    root: int
    path: str
    size_bytes: int
    digest: str = ""
    part: Part = WHOLE
    facts: Facts = Facts()
    head: int = 0


class Container(NamedTuple):
    """A listed file that holds or names inputs: `kind` is "table" or "tar", `key` what it is called.

    `row_group` is the one of a Parquet table that is listed here. `prefix` stands before the keys of what it holds.
    """

    kind: str
    key: str
    root: int
    path: str
    size_bytes: int
    prefix: str = ""
    row_group: int = -1

    def member_key(self, name: str) -> str:
        """Returns the key of something that it holds: its name, as Unicode."""
        return printable(f"{self.prefix}/{name}" if self.prefix else name)


class LabelRow(NamedTuple):
    """A row of --labels FILE, by its number: a label of the input of a key."""

    key: str
    number: int
    label: str


class Ignored(NamedTuple):
    """An input that is no media by its suffix, or is hidden, excluded or beyond the limit; only counted."""

    key: str
    why: str


class Reject(NamedTuple):
    """An input that was not packed. `reason` is one of REASONS, `detail` is for people."""

    key: str
    stage: str
    reason: str
    detail: str


class KeyConflict(NamedTuple):
    """Two inputs of one key: a usage error, found where equal keys meet."""

    key: str
    paths: tuple[str, str]


class Example(NamedTuple):
    """One image, or one clip of a video, as the header describes it; sizes are oriented.

    `frame_pts` are the presentation times of the frames to take, in units of `time_base` seconds, `random_access_pts` those of the
    key frames to decode from (none: from the start), `fps` the frames a second as taken; empty and 0 for images. Where
    clips are drawn, `views` holds these three for each view. `extra` is JSON for the segment, or empty.
    """

    source: Source
    clip: int
    example_id: str
    source_height: int
    source_width: int
    frame_pts: tuple[int, ...] = ()
    time_base: tuple[int, int] = (1, 1)
    random_access_pts: tuple[int, ...] = ()
    fps: float = 0.0
    extra: str = ""
    views: tuple[tuple[tuple[int, ...], tuple[int, ...], float], ...] = ()

    def of_view(self, view: int) -> "Example":
        """Returns the example with the frames of one view."""
        if not self.views:
            return self
        pts, entries, fps = self.views[view]
        return self._replace(frame_pts=pts, random_access_pts=entries, fps=fps, views=())


class Reference(NamedTuple):
    """One view of an example: what planning needs, and no pixels.

    `layout` is the number of its patch size, `num_tokens` how many of the grid's are kept. `is_drawn` says that the size
    was drawn from a range, so that planned counts may depart from it; not one that was shrunk to a cap.
    `uncapped_tokens` is how many it would have had without the cap; 0 where that made nothing smaller. `box` is the part
    of the source that it shows, mirrored where it is to `flip`. `caption` is the number of the one that is packed beside
    it, -1 for none, and `num_text_tokens` its length.
    """

    example: Example
    view: int
    layout: int
    target_height: int
    target_width: int
    grid: Grid
    num_tokens: int
    is_drawn: bool
    uncapped_tokens: int
    box: Box
    flip: bool
    caption: int = -1
    num_text_tokens: int = 0


def printable(name: str) -> str:
    """Returns a file name as Unicode: bytes that are not UTF-8 are percent-encoded."""
    return re.sub("[\udc80-\udcff]", lambda escape: f"%{ord(escape[0]) - 0xDC00:02X}", name)


def example_id(key: str, clip: int) -> str:
    """Returns the identity of an example: 32 hex digits of xxh3_128 over key, a zero byte and the clip number."""
    return xxhash.xxh3_128_hexdigest(f"{key}\0{clip}".encode())


# every reason a reject can have; a closed list, so that tables and dashboards can rely on it
REASONS = {
    "not_found": "the file is not there (any more)",
    "outside": "a name that leads out of the tar or the folder that it is to lie in",
    "bad_row": "a row of a table, or a member beside an image, that cannot be used",
    "unreadable": "the file or folder may not be read",
    "not_a_file": "a folder, pipe, socket or device where a file was named",
    "empty": "the file has no bytes",
    "unknown_format": "the content is no image or video format that patchpack reads",
    "lfs_pointer": "a Git LFS pointer; the file itself was never fetched",
    "broken": "the decoder reports an error",
    "partial": "a video that breaks off, or a clip of it that does not decode whole; its other clips are kept",
    "no_frames": "a video stream without a single frame",
    "no_video": "a container without a video stream",
    "too_large": "more pixels than --max-pixels, or more bytes than --max-bytes",
    "slow_source": "fewer frames a second than --fps, under --slow-source reject",
    "oversize": "more tokens than --max-tokens-per-example",
    "changed": "the file is not the one that was probed",
    "duplicate": "the same bytes as another input, which is kept (--dedupe digest)",
    "crashed": "its decoder ended its process, or ran out of memory (--decode-isolation process)",
    "timeout": "it took longer than --decode-timeout-s (--decode-isolation process)",
}

# stage and reason of the row that marks a damaged video: its whole clips are packed, so it counts as no rejected input
PARTIAL_VIDEO = ("probe", "partial")


def reject(key: str, stage: str, reason: str, detail: object) -> Reject:
    """Returns a reject row; its detail is one line, since decoders' messages are not, without passwords of URIs.

    Raises:
        KeyError: the reason is not one of REASONS (a bug of ours).
    """
    REASONS[reason]
    return Reject(key, stage, reason, without_secrets(" ".join(str(detail).split())))
