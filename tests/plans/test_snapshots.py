"""The SQL that the loop sends, checked in for database administrators to read: docs/sql/*.sql.

A changed statement shows in review as SQL. To write the files anew: UPDATE_SNAPSHOTS=1 make test ARGS="-k snapshot".
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from sqlalchemy import Dialect, Executable
from sqlalchemy.dialects import postgresql, sqlite

from prefect_claim_dispatch.statements.begin import begin
from prefect_claim_dispatch.statements.claim import claim
from prefect_claim_dispatch.statements.renew import renew
from prefect_claim_dispatch.statements.rescue import expired
from prefect_claim_dispatch.statements.settle import settle
from prefect_claim_dispatch.statements.survey import count_due, survey
from tests.kit.tables import TABLE

FOLDER = Path(__file__).parents[2] / "docs" / "sql"
DIALECTS: dict[str, Dialect] = {
    "postgresql": postgresql.dialect(paramstyle="named"),
    "sqlite": sqlite.dialect(paramstyle="named"),
}


def statements(name: str) -> dict[str, Executable]:
    """Every statement of the loop, under the heading that the file gives it."""
    return {
        "survey: what there is to do; an idle tick is this and nothing else": survey(TABLE),
        "rescue: claims whose lease expired": expired(TABLE, name),
        "claim: of one type and priority": claim(TABLE, name, (1,)),
        "claim: of two types in one priority, and one in the next": claim(TABLE, name, (2, 1)),
        "begin: which runs work on which rows": begin(TABLE, name),
        "renew: the leases of what still runs": renew(TABLE, name),
        "settle: what became of it": settle(TABLE, name),
        "count_due: once a run, where types have no processor": count_due(TABLE),
    }


def rendered(name: str) -> str:
    """The file's text."""
    parts = [f"-- What a claim flow sends to {name}, compiled from prefect_claim_dispatch/statements."]
    for heading, statement in statements(name).items():
        compiled = str(statement.compile(dialect=DIALECTS[name]))  # type: ignore[attr-defined]
        parts.append(f"-- {heading}\n" + "\n".join(re.sub(r"\s+$", "", line) for line in compiled.splitlines()) + ";")
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("name", DIALECTS)
def test_sql_is_what_the_snapshot_says(name: str) -> None:
    """Nobody should have to run Python to know what will be asked of a database."""
    file = FOLDER / f"{name}.sql"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(rendered(name))

    assert rendered(name) == file.read_text()
