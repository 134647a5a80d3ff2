"""The code blocks of the documentation, for tests to run what people read; a fence names its block."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w+) (?P<name>\S+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str) -> dict[str, str]:
    """The named code blocks of *document*, a path in this repository, by name."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [(match["name"], match["code"]) for match in FENCE.finditer(text)]
    assert len(dict(found)) == len(found), f"{document} has two blocks of one name"
    return dict(found)
