"""The programs of docs/publishing.md and docs/catalogue.md, run as they stand; their assertions are promises."""

from __future__ import annotations

import pytest

from prefect_claim_dispatch import databases
from tests.kit.documents import blocks

PROGRAMS = blocks("docs/publishing.md") | blocks("docs/catalogue.md")


@pytest.mark.usefixtures("empty_catalogue")
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_keeps_the_pages_promises(name: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said about keys, encodings and clocks must be so on every database."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    exec(compile(PROGRAMS[name], name, "exec", dont_inherit=True), {"__name__": name})

    databases.engine_for(database_url).dispose()
