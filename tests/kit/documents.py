"""The documentation, for tests: code blocks to run, a fence names its block; and tables that name tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w+) (?P<name>\S+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?:(?P<group>\w+)::)?(?P<test>test_\w+)`")


def table_rows(text: str, *headings: str) -> list[list[str]]:
    """The cells of all table rows in *text*, but for rulers and the rows that begin with one of *headings*."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in rows if row[0] not in headings and set(row[0]) != {"-"}]


def is_there(test: re.Match[str]) -> bool:
    """Whether the test that a match of `TEST` names is written in its file, or in the class of that file."""
    body = ast.parse((ROOT / test["file"]).read_text(encoding="utf-8")).body
    if test["group"] is not None:
        [body] = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == test["group"]]
    return test["test"] in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def blocks(document: str) -> dict[str, str]:
    """The named code blocks of *document*, a path in this repository, by name."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [(match["name"], match["code"]) for match in FENCE.finditer(text)]
    assert len(dict(found)) == len(found), f"{document} has two blocks of one name"
    return dict(found)
