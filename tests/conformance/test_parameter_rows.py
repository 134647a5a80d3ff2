"""Sets of parameters: what is bound comes back, row by row, whatever is in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Engine, Float, Text, select
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.dialects import Instant, bind_rows, parameter_rows

TYPES: dict[str, Any] = {"number": BigInteger(), "share": Float(), "text": Text()}
NUMBERS = st.none() | st.integers(-(2**63), 2**63 - 1)
SHARES = st.none() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.tuples(NUMBERS, SHARES, TEXTS), max_size=20)


def returned(engine: Engine, rows: list[tuple[Any, ...]], types: dict[str, Any]) -> list[tuple[Any, ...]]:
    """*rows* as the database sees them."""
    source = parameter_rows(engine.dialect.name, "row", **types)
    columns = {name: [row[position] for row in rows] for position, name in enumerate(types)}
    with engine.connect() as connection:
        found = connection.execute(select(source), bind_rows(engine.dialect.name, "row", columns))
        return [tuple(row) for row in found]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(rows=[])
@example(rows=[(None, None, None)])
@example(rows=[(1, 0.5, "NULL"), (2, -0.0, "null"), (3, 1e300, ""), (4, 5e-324, " "), (None, None, None)])
@example(
    rows=[
        (0, 0.0, text)
        for text in ['"', "\\", '\\"', "{", "}", ",", "{a,b}", "'", "\n\t\r\x01", "\\n", "é😀", "%s", ":x"]
    ]
)
@given(rows=ROWS)
def test_what_is_bound_comes_back(engine: Engine, rows: list[tuple[Any, ...]]) -> None:
    """Values, NULLs, their order and their number."""
    assert returned(engine, rows, TYPES) == rows


def test_instants_come_back_though_the_clock_showed_them_twice(engine: Engine) -> None:
    """Two instants that Python calls equal, an hour apart, when clocks are put back; and the ends of time."""
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    second = first.replace(fold=1)
    ends = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
    instants = [first, second, *ends, None]
    bound = [Instant().process_bind_param(instant, engine.dialect) for instant in instants]

    found = [row[0] for row in returned(engine, [(value,) for value in bound], {"at": Instant()})]

    assert first == second
    assert found[1] - found[0] == timedelta(hours=1)
    assert found[2:] == [*ends, None]


def test_nul_is_refused_and_not_taken_for_an_end(postgres_url: str) -> None:
    """PostgreSQL's text can't hold it; the driver says so before anything is sent."""
    engine = engines.create(postgres_url)
    with pytest.raises(DBAPIError, match="NUL"):
        returned(engine, [(1, 0.5, "a\0b")], TYPES)
    engine.dispose()
