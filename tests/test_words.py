"""The words of docs/glossary.md are used, and those that they replace are not: in code, messages, help and documents."""

import re
import subprocess

import pytest
from conftest import ROOT

# words of old that the glossary replaces
REPLACED = (
    *("dear", "dearest", "dearer", "packed set", "packed sets", "picture", "pictures", "told", "tells", "telling"),
    *("kept plan", "materialise", "menu", "menus", "wanted", "worth", "worths", "holes", "helper", "helpers"),
    *("clash", "clashes", "exchange", "exchanges", "exchanged", "opened again", "usual path", "dataset set"),
)
# a phrase of its own, or somebody else's name
ALLOWED: dict[str, tuple[str, ...]] = {}

# what is replaced as it is by the next packing engine, and what tells of the past
LEFT = ("docs/glossary.md", "CHANGELOG.md", "tests/")


def documents() -> list[str]:
    """Returns the files that people read: code, documents and scripts."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [name for name in names if name.endswith((".py", ".md", ".sh")) and not name.startswith(LEFT)]


@pytest.mark.parametrize("word", REPLACED)
def test_no_word_of_old_is_left(word: str) -> None:
    # also inside names: wanted_height, num_wanted
    pattern = re.compile(rf"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in documents()
        for number, line in enumerate((ROOT / name).read_text().split("\n"), 1)
        if pattern.search(line) and not any(phrase in line for phrase in ALLOWED.get(word, ()))
    ]
    assert not found, "\n".join(found)


def test_every_word_of_the_glossary_is_in_use() -> None:
    table = re.findall(r"^\| ([^|]+?) \|", (ROOT / "docs/glossary.md").read_text(), re.M)[2:]
    assert len(table) > 30
    # KeyConflict, key_conflicts and key conflicts alike
    text = re.sub(r"[\s_]", "", " ".join((ROOT / name).read_text().lower() for name in documents()))
    for word in (word for row in table for word in row.split(", ")):
        assert word.replace(" ", "") in text, word
