"""docs/troubleshooting.md quotes what commands say."""

import re

from conftest import ROOT

DOCUMENT = (ROOT / "docs/troubleshooting.md").read_text()
# one text, whatever quotes, braces and lines a source breaks it by
SOURCES = "".join(
    re.sub(r'["\']\s*\n\s*f?["\']', "", path.read_text())
    for folder in ("patchpack", "pipeline", "schemas")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


def test_what_is_quoted_is_said() -> None:
    quoted = re.findall(r'^\|[^"|]*"([^"]+)"', DOCUMENT, re.M)
    assert len(quoted) > 12
    assert [text for text in quoted if text not in SOURCES] == []
