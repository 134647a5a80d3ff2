"""docs/parity.md: every feature has its call and its test, and the tests are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.documents import ROOT

PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [row for row in ROWS if row[0] not in {"feature", "there"} and set(row[0]) != {"-"}]
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?:(?P<group>\w+)::)?(?P<test>test_\w+)`")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_feature_has_a_call_and_a_test_that_exists(row: list[str]) -> None:
    """A table that names tests which were renamed long ago is no proof of anything."""
    feature, call, named = row
    test = TEST.fullmatch(named.rstrip(" |"))

    assert feature
    assert call
    assert test is not None, f"{named} is no `tests/file.py::test_name`"
    assert test["test"] in names_in(test["file"], test["group"])


def names_in(file: str, group: str | None) -> set[str]:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    if group is not None:
        [body] = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == group]
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_read_at_all() -> None:
    """A changed form of the table must not make the test above run over nothing."""
    assert len(ROWS) == PAGE.count("::test_") >= 40
