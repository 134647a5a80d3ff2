"""Prefect's global concurrency limits, on a real server: never more than their slots, and nothing lost by waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish_many
from prefect_claim_dispatch.diagnosing.prefects import examine_limits
from prefect_claim_dispatch.dispatching import occupying
from prefect_claim_dispatch.publishing import Publisher
from tests.acceptance.conftest import Dispatch
from tests.acceptance.limited_processors import LIMIT, MISSING, OTHER
from tests.acceptance.processors import ledger
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes

PROCESSORS = "tests.acceptance.limited_processors"

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.parametrize("database_url", ["postgresql-18"], indirect=True),
    pytest.mark.usefixtures("database_url"),
]


@pytest.fixture
def slots(prefect_api: PrefectServer) -> Callable[[str], int]:
    """How many slots of a limit are taken, by the server."""
    return lambda name: int(prefect_api.get(f"v2/concurrency_limits/{name}")["active_slots"])


@pytest.fixture(autouse=True)
def limits(prefect_api: PrefectServer) -> Iterator[None]:
    """Two limits of one slot each."""
    with get_client(sync_client=True) as client:
        for name in (LIMIT, OTHER):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        yield
        for name in (LIMIT, OTHER):
            client.delete_global_concurrency_limit_by_name(name)


def publish_some(engine: Engine, type_: str, number: int) -> None:
    """So many of one type."""
    publisher = Publisher(engine)
    publish_many(engine, [publisher.draft(type_) for _ in range(number)])


def most_at_once() -> int:
    """How many were between begin and end at a time, by the order of the ledger's lines."""
    most = running = 0
    for line in ledger():
        running += 1 if line[2] == "begun" else -1
        most = max(most, running)
    return most


def test_two_flows_never_have_more_than_the_slots(
    engine: Engine, dispatch: Dispatch, children: Processes, slots: Callable[[str], int], ledger_file: Path
) -> None:
    """What the database, or somebody's API, can bear is not more for being asked from two machines."""
    publish_some(engine, "l.sync", 6)
    publish_some(engine, "l.async", 3)
    url = engine.url.render_as_string(hide_password=False)
    other = children.python(
        *("-m", "prefect_claim_dispatch.cli", "run", "--json", "--limit", "2", "--processors", PROCESSORS),
        env={**os.environ, "CLAIM_DISPATCH_DATABASE_URL": url, "LIMIT_NAME": LIMIT, "LEDGER": str(ledger_file)},
    )

    report = dispatch(processors=[PROCESSORS], limit=2)
    other.expect_success(120)
    dispatch(processors=[PROCESSORS])  # what the other had snoozed at its end

    rows = operations.find(engine)
    assert {str(row.status) for row in rows} == {"processed"}
    assert report.dispatched >= 1
    assert len(ledger()) == 2 * 9
    assert most_at_once() == 1
    assert (slots(LIMIT), slots(OTHER)) == (0, 0)


def test_batch_takes_one_slot_for_all_its_rows(engine: Engine, dispatch: Dispatch) -> None:
    """A slot is what a run has, and asking costs as much as a run."""
    publish_some(engine, "l.batch", 20)

    report = dispatch(processors=[PROCESSORS])

    assert (report.processed, report.runs) == (20, 2)
    assert most_at_once() == 1


def test_failing_processor_gives_its_slot_back(engine: Engine, dispatch: Dispatch, slots: Callable[[str], int]) -> None:
    """Between Prefect's own tries, too."""
    publish_some(engine, "l.fail", 1)

    report = dispatch(processors=[PROCESSORS])

    assert report.dead == 1
    assert len(ledger()) == 2 * 4
    assert slots(LIMIT) == 0


def test_waiting_costs_no_attempt_and_ends(engine: Engine, dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the flow's slots are wanted elsewhere; the row comes again in seconds, as if nothing had been."""
    monkeypatch.setattr(occupying, "LONGEST_WAIT", 1.0)
    publish_some(engine, "l.sync", 1)

    with concurrency(LIMIT, strict=True):
        report = dispatch(processors=[PROCESSORS])

    (row,) = operations.find(engine)
    assert report.snoozed == 1
    assert (str(row.status), row.fail_count) == ("pending", 0)
    assert [note["kind"] for note in row.errors] == ["snoozed"]  # why it waits
    assert row.end_at > row.created_at
    assert ledger() == []


def test_limit_that_does_not_exist_limits_to_nothing(
    engine: Engine, dispatch: Dispatch, slots: Callable[[str], int]
) -> None:
    """Prefect alone would let it run without a limit, where another of its limits exists even if it is strict."""
    publish_some(engine, "l.missing", 1)

    report = dispatch(processors=[PROCESSORS])

    (row,) = operations.find(engine)
    assert (report.snoozed, row.fail_count) == (1, 0)
    assert ledger() == []
    assert slots(LIMIT) == 0


def test_doctor_misses_the_limit() -> None:
    """Its rows wait without an error on record, so somebody must say it."""
    (finding,) = examine_limits((LIMIT, MISSING))

    assert finding.level.value == "error"
    assert MISSING in finding.what
    assert [found.level.value for found in examine_limits((LIMIT, OTHER))] == ["ok"]
    assert examine_limits(()) == []
