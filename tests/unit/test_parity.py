"""docs/parity.md: every feature has its call and its test, and the tests are there."""

from __future__ import annotations

import pytest

from tests.kit.documents import ROOT, TEST, is_there, table_rows

PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
ROWS = table_rows(PAGE, "feature", "there")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_feature_has_a_call_and_a_test_that_exists(row: list[str]) -> None:
    """A table that names tests which were renamed long ago is no proof of anything."""
    feature, call, named = row
    test = TEST.fullmatch(named)

    assert feature
    assert call
    assert test is not None, f"{named} is no `tests/file.py::test_name`"
    assert is_there(test)


def test_the_table_is_read_at_all() -> None:
    """A changed form of the table must not make the test above run over nothing."""
    assert len(ROWS) == PAGE.count("::test_") >= 40
