"""docs/reliability.md: every fault has its test, or says that it has none, and the tests that are named are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.documents import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = PAGE.partition("\n## Faults\n")[2].partition("\n## ")[0].partition("### Behind a pooler")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in FAULTS.splitlines() if line.startswith("| ")
]
ROWS = [row for row in ROWS if row[0] not in {"fault", "input"} and set(row[0]) != {"-"}]
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)`")
HONEST = ("**no test yet**", "**not on one machine**")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_fault_has_a_test_that_exists_or_says_that_it_has_none(row: list[str]) -> None:
    """A table that promises what nobody has tried is worse than none."""
    named = list(TEST.finditer(row[1]))

    assert len(row) == 4
    assert named or any(word in row[1] for word in HONEST), f"{row[1]} names no test and does not say so"
    assert row[1].count("::") == len(named), f"{row[1]}: write `tests/file.py::test_name`"
    for test in named:
        body = ast.parse((ROOT / test["file"]).read_text(encoding="utf-8")).body
        assert test["test"] in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_read_at_all() -> None:
    """A changed form of the table must not make the test above run over nothing."""
    assert len(ROWS) >= 55
