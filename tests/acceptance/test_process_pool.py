"""The task and batch lanes on Prefect's process pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.task_runners import ProcessPoolTaskRunner
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish
from tests.acceptance.conftest import Dispatch  # noqa: F401 - its fixtures
from tests.acceptance.runner_cases import (
    SECRET,
    assert_crashes_are_on_record,
    assert_logs_came,
    assert_outcomes_come_back,
    dispatched,
    settings_of_all_threads,
)
from tests.acceptance.runner_processors import LOGGER
from tests.kit.prefect_server import PrefectServer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("database_url", ["postgresql-18"], indirect=True),
    pytest.mark.usefixtures("ledger_file", "everywhere"),
]


@pytest.fixture
def everywhere(prefect_api: PrefectServer) -> Iterator[None]:
    """Prefect's settings in every thread of this process."""
    with settings_of_all_threads():
        yield


def test_outcomes_and_logs_come_back_from_other_processes(
    engine: Engine, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And payloads do not go to Prefect on the way."""
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", LOGGER)

    assert_outcomes_come_back(engine, lambda: dispatched(ProcessPoolTaskRunner(max_workers=2)))

    assert_logs_came(engine, prefect_api, with_prints=True)
    assert SECRET.encode() not in prefect_api.stored


@pytest.mark.exhaustive
def test_pool_that_broke_is_made_anew(engine: Engine) -> None:
    """One dead process breaks a pool, and the others end with it: what ran has a crash on record, and is done again."""
    publish(engine, "r.kill")
    for _ in range(8):
        publish(engine, "r.beside")

    report = dispatched(ProcessPoolTaskRunner(max_workers=2))

    assert report.processed == 9
    (killer,) = operations.find(engine, type="r.kill")
    assert [error["kind"] for error in killer.errors] == ["crashed"]
    assert_crashes_are_on_record(engine)
