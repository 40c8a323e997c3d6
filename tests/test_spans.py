"""Folders of stores that hold very many files themselves: they are listed in spans of names, which lose nothing and hold nothing twice."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import Proxy, serving

from patchpack.pipeline.stages.list import Branch, list_branch, list_input, list_top, parse_input
from patchpack.pipeline.storage import files, listing, remote, spans, stores
from patchpack.pipeline.storage.spans import Span, in_spans, spans_behind
from patchpack.pipeline.storage.stores import Page, StoredObject

PAGE, FEW = 4, 10
ALL = Span("", None)


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with serving(request.param) as proxy:
        yield proxy


@pytest.fixture
def store(served: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """An empty store with pages of four, in which a folder of ten files is a large one."""
    monkeypatch.setattr(stores, "PAGE_OBJECTS", PAGE)
    monkeypatch.setattr(spans, "SPLIT_FILES", FEW)
    served.clear()
    return served


def fill(store: Proxy, names: list[str]) -> str:
    """Returns a folder with files of these names, beside others that begin like it."""
    for name in names:
        files.write(store.uri(f"raw/{name}"), name.encode())
    for name in ("ra", "raw.jpg", "rawer/x.jpg"):
        files.write(store.uri(name), b"x")
    store.requests.clear()
    return store.uri("raw")


def listed_apart(root: str, pattern: str = "**") -> tuple[list[listing.ListedFile], list[Span], list[Span]]:
    """Returns what is listed of a root in parts, which parts were spans, and the spans in which those that are large are listed."""
    found: list[listing.ListedFile] = []
    met: list[Span] = []
    again: list[Span] = []
    for part in listing.split(root, pattern):
        if isinstance(part, listing.ListedFile):
            found.append(part)
            continue
        met += [part] if isinstance(part, Span) else []
        below = part if isinstance(part, Span) else part.relative
        for one in listing.match_in_spans(root, pattern, below):
            if isinstance(one, Span):
                again.append(one)
                found += [last for last in listing.match(root, pattern, one) if isinstance(last, listing.ListedFile)]
            elif isinstance(one, listing.ListedFile):
                found.append(one)
    return found, met, again


NUMBERS = [f"img_{number:05}.jpg" for number in range(0, 100_000, 2_381)]
FOLDERS = ["img_/x.jpg", "img_00000/a.jpg", "img_1/a.jpg", "img_1/b/c.png", "img_5/a.jpg", "zz/1.jpg", "zz/2.jpg"]
NAMES = {
    "numbers": NUMBERS,
    "hexadecimal": [f"{number * 2654435761 % 2**32:08x}.jpg" for number in range(40)],
    "mixed case": [f"{first}{second}.jpg" for first in "AaBbZz_-" for second in "019Xx"],
    "not ASCII": [f"{first}{second}.jpg" for first in ("a", "é", "z", "中", "文", "🙂") for second in ("b", "ö", "国", "\U0010fffe")],
    "folders between": [*NUMBERS, *FOLDERS],
    # the third page, behind which the rest is split, ends with the folder
    "a folder last": [f"a{number:02}.jpg" for number in range(11)] + ["b/1.jpg", "b/z/2.jpg", "b/\U0010ffff", "b0.jpg"],
    # boundaries are a7, a8, ... and those below a1
    "boundaries": [f"a{number:02}" for number in range(20)] + [f"a{digit}" for digit in range(10)] + ["a1/1", "a2/1"],
    "one is the beginning of another": ["a" * length for length in range(1, 30)],
    "short": ["a.jpg", "b/c.jpg"],
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.slow_beyond(3)
def test_a_listing_in_spans_is_the_whole(store: Proxy, names: list[str]) -> None:
    root = fill(store, names)
    found, met, _ = listed_apart(root)
    assert sorted(one.relative for one in found) == sorted(names)
    assert sorted(found) == sorted(listing.walk(root))
    assert all(one.etag and one.size_bytes == len(one.relative.encode()) for one in found)
    assert bool(met) == (len(names) > 3 * PAGE)
    assert names is not NAMES["a folder last"] or met[0].after == "b/"


BELOW = {
    "a folder": [f"images/{name}" for name in NUMBERS]
    + ["a.jpg", "images.jpg", "images0", "images/z/1.jpg", "z/1.jpg"],
    "a folder of many levels": [f"images/{name[4:7]}/{name}" for name in NUMBERS] + ["images/\U0010ffff/1.jpg"],
    "a large span": [f"{number:03}.jpg" for number in range(0, 300, 3)],
    "folders without a name": ["a.jpg", "/b.jpg", "/c/d.jpg", "//e.jpg", "0", "/\U0010ffff", "f//g.jpg"],
}


@pytest.mark.parametrize("names", BELOW.values(), ids=BELOW)
@pytest.mark.parametrize("pattern", ["**", "**/*.jpg", "images/*.jpg", "*.jpg"])
@pytest.mark.slow_beyond(2)
def test_what_is_large_below_is_split_once_more(store: Proxy, names: list[str], pattern: str) -> None:
    root = fill(store, names)
    found, _, met = listed_apart(root, pattern)
    assert sorted(found) == sorted(listing.match(root, pattern))
    if pattern == "**":
        assert sorted(one.relative for one in found) == sorted(names)
        assert bool(met) == (names is not BELOW["folders without a name"])
        assert {span.folder for span in met} <= {"", "images"}


@pytest.mark.parametrize("pattern", ["*.jpg", "**/*.jpg", "*/*.jpg", "img_1/**", "*[05].jpg", "img_1/b/*", "**/*.png"])
@pytest.mark.slow_beyond(1)
def test_a_pattern_matches_in_spans_what_it_matches_in_the_whole(store: Proxy, pattern: str) -> None:
    root = fill(store, NAMES["folders between"])
    found, met, _ = listed_apart(root, pattern)
    assert sorted(found) == sorted(listing.match(root, pattern)) != []
    assert met


def test_files_directly_in_a_folder_are_found_without_listing_the_folders_in_it(store: Proxy) -> None:
    root = fill(store, [*NUMBERS[:12], *(f"x{n // 3}/{n % 3}.jpg" for n in range(60)), "z.jpg"])
    found, met, _ = listed_apart(root, "*.jpg")
    assert [one.relative for one in found] == [*NUMBERS[:12], "z.jpg"]
    # of the last span six pages of folders, of all others one
    assert store.count("list") == 3 + len(met) + 5


def test_inputs_of_a_large_folder_are_those_that_are_listed_at_once(store: Proxy) -> None:
    given = parse_input(0, fill(store, [*NAMES["folders between"], "notes.txt", ".hidden.jpg", "x.TIF"]))
    apart: list[object] = []
    branches: list[Branch] = []
    for one in list_top(given, ("*9.jpg",)):
        parts = list_branch(one, ("*9.jpg",), may_split=True) if isinstance(one, Branch) else [one]
        for part in parts:
            (branches if isinstance(part, Branch) else apart).append(part)
    for branch in branches:
        apart += list_branch(branch, ("*9.jpg",))
    assert branches
    assert sorted(map(repr, apart)) == sorted(map(repr, list_input(given, ("*9.jpg",))))


def test_a_span_is_a_request_a_page(store: Proxy) -> None:
    names = sorted(NAMES["folders between"])
    root = fill(store, names)
    _, met, _ = listed_apart(root)
    # four pages, and the three folders on them
    asked = 4 + 3
    for span in met:
        # Google begins with the name itself, if it is there
        behind = [name for name in names if name > span.after or (store.scheme == "gs" and name == span.after)]
        up_to = sum(span.up_to is None or name <= span.up_to for name in behind)
        # as far as a page shows a name behind the span, or the end
        asked += max(1, -(-min(up_to + 1, len(behind)) // PAGE))
    assert store.count("list") == asked
    assert len(met) == 8


def test_a_store_that_begins_at_the_beginning_whatever_it_is_asked_loses_nothing(
    store: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(store, NAMES["folders between"])
    client = remote._client(root)

    class Deaf:
        patient = False

        def page(self, folder: str, flat: bool, token: str | None, most: int | None = None, after: str = "") -> Page:
            return client.page(folder, flat, token, most)

    monkeypatch.setattr(remote, "_client", lambda path: Deaf())
    found, met, _ = listed_apart(root)
    assert sorted(one.relative for one in found) == sorted(NAMES["folders between"])
    assert met


def pages_of(names: list[str]) -> list[Page]:
    """Returns the pages of a listing of names directly in s3://b/raw, in the order given."""
    cut = [names[start : start + PAGE] for start in range(0, len(names), PAGE)]
    return [
        Page(
            [StoredObject(f"s3://b/raw/{name}", 1) for name in page if not name.endswith("/")],
            [f"s3://b/raw/{name}" for name in page if name.endswith("/")],
            "more" if page is not cut[-1] else None,
        )
        for page in cut
    ]


def test_what_is_listed_in_no_order_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPLIT_FILES", FEW)
    in_order = ["", *sorted(NUMBERS)]
    assert any(isinstance(one, Span) for one in in_spans(pages_of(in_order), "s3://b/raw", ALL))
    for shuffled in (in_order[::-1], [*in_order[5:12], in_order[1], *in_order[12:]]):
        assert list(in_spans(pages_of(shuffled), "s3://b/raw", ALL)) == pages_of(shuffled)


def test_a_folder_of_folders_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPLIT_FILES", FEW)
    names = [f"{number:05}/" for number in range(400)] + ["a.jpg"]
    assert list(in_spans(pages_of(names), "s3://b/raw/", ALL)) == pages_of(names)


TEXT = st.text("01aé中/\U0010ffff\0", min_size=1, max_size=5)


@given(st.lists(TEXT, min_size=1).map(sorted), TEXT, st.lists(TEXT), st.none() | TEXT)
def test_spans_hold_every_name_behind_once_and_none_before(
    names: list[str], other: str, keys: list[str], up_to: str | None
) -> None:
    last = max(*names, other)
    up_to = None if up_to is None else max(last, up_to)
    parts = spans_behind(names, last, Span("", up_to, "images"))
    assert {span.folder for span in parts} == {"images"}
    ends = [span.up_to for span in parts if span.up_to]
    for key in [*keys, *names, last, last + "\0", *ends, *(end + "\0" for end in ends)]:
        as_bytes = key.encode()
        holding = [
            span
            for span in parts
            if span.after.encode() < as_bytes and (span.up_to is None or as_bytes <= span.up_to.encode())
        ]
        assert len(holding) == (as_bytes > last.encode() and (up_to is None or as_bytes <= up_to.encode()))
        assert [span for span in parts if key in span] == holding


@pytest.mark.parametrize(
    ("make", "num_read", "most_of_all", "most_spans"),
    [
        (lambda number: f"img_{number:05}.jpg", 50, 0.1, 50),
        (lambda number: f"frames of a long walk {number:012}.jpg", 50, 0.1, 150),
        (lambda number: f"{number * 2654435761 % 2**32:08x}.jpg", 50, 0.07, 70),
        # most differ first behind the place where those that are read do
        (lambda number: f"1{number:04}.jpg" if number < 9900 else f"0{number % 100}.jpg", 150, 0.11, 30),
    ],
    ids=["numbers", "many zeros", "hexadecimal", "a few before"],
)
def test_names_that_count_up_are_cut_into_fair_parts(
    make: Callable[[int], str], num_read: int, most_of_all: float, most_spans: int
) -> None:
    names = sorted(make(number) for number in range(10_000))
    parts = spans_behind(names[:num_read], names[num_read - 1], ALL)
    assert len(parts) <= most_spans
    assert max(sum(name in span for name in names) for span in parts) <= most_of_all * len(names)


def test_names_of_very_many_characters_are_cut_into_a_thousand() -> None:
    names = [f"中{chr(code)}.jpg" for code in range(0x4E00, 0x8E00)]
    parts = spans_behind(names, names[100], ALL)
    assert 500 < len(parts) <= spans.MAX_CUTS + 1
    assert all(sum(name in span for span in parts) == (name > names[100]) for name in names[::97])
