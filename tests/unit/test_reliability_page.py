"""docs/reliability.md: every fault has its test, or says that it has none, and the tests that are named are there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.kit.documents import ROOT, TEST, is_there, table_rows

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = PAGE.partition("\n## Faults\n")[2].partition("\n## ")[0].partition("### Large tables")[0]
ROWS = table_rows(FAULTS, "fault", "input")
NONE_YET, NOT_HERE = "**no test yet**", "**not on one machine**"
UNTESTED: set[str] = set()
"""Faults that may say so. Take a name out when its test is written; nothing is put in."""


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_fault_has_a_test_that_exists_or_says_that_it_has_none(row: list[str]) -> None:
    """A table that promises what nobody has tried is worse than none."""
    named = list(TEST.finditer(row[1]))
    admits = any(word in row[1] for word in (NONE_YET, NOT_HERE))

    assert len(row) == 4
    assert named or admits, f"{row[1]} names no test and does not say so"
    assert row[1].count("::") == len(named), f"{row[1]}: write `tests/file.py::test_name`"
    assert not admits or row[0] in UNTESTED, f"{row[0]} must have a test"
    assert all(map(is_there, named))


def test_each_fault_is_told_once() -> None:
    """Of two rows that contradict each other, people believe the one that they see first."""
    assert [fault for fault, times in Counter(row[0] for row in ROWS).items() if times > 1] == []


def test_the_table_is_read_at_all() -> None:
    """A changed form of the table must not make the tests above run over nothing."""
    assert len(ROWS) >= 60
