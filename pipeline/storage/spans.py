"""Spans of the names below a folder of a store, so that a folder that holds very many files itself is listed by several workers.

Stores list names in the order of their UTF-8 bytes, which is that of Python's strings, and begin behind any name that they are given. So
the first names are read, and what comes behind them is cut where names of the same kind would differ: at each place up to
the one where those read differ, and the one after it, by each character that was met there. The cuts are a guess, the spans
are not: they hold every name behind those read, whatever it is, once. A span that turns out to be large is cut once more.

Cost: a request a page of each span, so one at least for a span in which nothing lies. What is given up: spans of equal
size. Names that differ in digits make ten large ones at most, a hundred when those are cut, in hexadecimal digits 16 and 256.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

from patchpack.pipeline.storage.stores import Page

# files that a folder holds itself before the rest is listed in spans: what sixteen pages show
SPLIT_FILES = 16_000
# of more some are left out: names in Chinese differ in thousands of characters
MAX_CUTS = 1000


class Span(NamedTuple):
    """Names in a folder, relative to it, that are greater than one and no greater than another; without that, all that are greater."""

    after: str
    up_to: str | None
    folder: str = ""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.after < name and not self.is_behind(name)

    def is_behind(self, name: str) -> bool:
        """Returns whether the span ends before a name."""
        return self.up_to is not None and name > self.up_to


# what lies below a folder without a name, as s3://bucket/raw//1.jpg: no store has names of more than 1024 bytes
NAMELESS = Span("/", "/" + "\U0010ffff" * 256)


def in_spans(pages: Iterable[Page], uri: str, whole: Span) -> Iterator[Page | Span]:
    """Yields the pages of a listing, and behind `SPLIT_FILES` files spans of all that is left.

    Args:
        pages: of what lies in a folder of a store, or below it.
        uri: of the folder.
        whole: what the pages are of.
    """
    length = len(uri.rstrip("/")) + 1
    names: list[str] = []
    last, in_order = "", True
    for page in pages:
        # the folder's own mark has no name
        files = [found.path[length:] for found in page.objects if len(found.path) > length]
        here = [*files, *(path[length:] for path in page.folders)]
        # S3's directory buckets list in no order, and begin nowhere but at the beginning
        in_order = in_order and last <= min(here, default=last)
        last = max(here, default=last)
        if len(names) < SPLIT_FILES:
            names += files
        if page.following is None or len(names) < SPLIT_FILES or not in_order:
            yield page
            continue
        # what lies below a folder that comes last is greater than its name, and so in a span
        yield page._replace(folders=[path for path in page.folders if path[length:] != last])
        yield from spans_behind(names, last, whole)
        return


def spans_behind(names: list[str], last: str, whole: Span) -> list[Span]:
    """Returns spans, in order, that hold every name greater than `last` of another span once.

    Args:
        names: what was read, the least of them first; one at least.
        last: the greatest name that was read, which need not be one of them.
        whole: the other span.
    """
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(names[0], last, strict=False)))
    characters = {character for name in names for character in name[common : common + 2]}
    cuts = sorted(
        last[:place] + character
        for place in range(min(common + 2, len(last)))
        for character in characters
        if character > last[place] and not whole.is_behind(last[:place] + character)
    )
    cuts = cuts[:: len(cuts) // MAX_CUTS + 1]
    return [Span(*ends, whole.folder) for ends in zip([last, *cuts], [*cuts, whole.up_to], strict=True)]
