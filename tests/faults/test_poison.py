"""Poison: one claim flow over rows of every processor that harms its process, and fifty that don't."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from prefect_claim_dispatch import databases, operations, publish_many
from prefect_claim_dispatch.publishing import Publisher
from tests.acceptance.processors import ledger
from tests.faults.poison import FAILING, FATAL, HEALTHY, MEDDLING
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes

SIBLINGS = 50


@pytest.mark.timeout(300)
# On one database: what is poisoned here is the process.
@pytest.mark.parametrize("database_url", ["postgresql-18"], indirect=True)
def test_poison_of_every_kind_harms_only_its_own_rows(
    children: Processes,
    prefect_server: PrefectServer,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those rows fail, each with its attempts; their fifty siblings are done at the first, once each."""
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    engine = databases.engine_for(database_url)
    publisher = Publisher(engine)
    siblings = [HEALTHY] * (SIBLINGS // 2)
    types = [*siblings, *FATAL, *FAILING, *MEDDLING, *siblings]
    publish_many(engine, (publisher.draft(type_).payload({}) for type_ in types))

    flow = children.python(
        "-m", "prefect_claim_dispatch.cli", "run", "--processors", "tests.faults.poison", "--lease", "60s",
        env={
            **prefect_server.env,
            "CLAIM_DISPATCH_DATABASE_URL": database_url,
            "CLAIM_DISPATCH_MAX_CONCURRENCY": "4",
        },
    )  # fmt: skip
    flow.expect_success(timeout=240)

    rows = operations.find(engine, limit=None)
    executed = Counter(int(line[0]) for line in ledger())
    seen = {(row.type, str(row.status), row.fail_count, executed[row.id]) for row in rows}
    assert len(rows) == len(types)
    assert seen == {
        *((type_, "processed", 0, 1) for type_ in (HEALTHY, *MEDDLING)),
        *((type_, "dead", 1, 1) for type_ in FAILING),
        *((type_, "dead", 2, 4) for type_ in FATAL),  # two tries of Prefect's in each of two attempts
    }
