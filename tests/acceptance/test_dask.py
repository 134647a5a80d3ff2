"""The task and batch lanes on Dask: a real cluster of two worker processes, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import databases, operations, processor, publish
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.processors import load_modules, registry
from tests.acceptance.runner_cases import (
    PROCESSORS,
    SECRET,
    assert_crashes_are_on_record,
    assert_logs_came,
    assert_outcomes_come_back,
    dispatched,
    nothing,
)
from tests.acceptance.runner_processors import LOGGER
from tests.conftest import MIGRATE
from tests.kit import postgres
from tests.kit.prefect_server import PrefectServer

pytest.importorskip("prefect_dask", reason="the extra 'dask' is not installed")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def surroundings(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres.Server
) -> Iterator[dict[str, str]]:
    """A database and a ledger for the module: worker processes are told of them once, when they start."""
    with postgres.fresh_database(postgres_server, prepare=MIGRATE) as url:
        ledger = tmp_path_factory.mktemp("dask") / "ledger"
        yield {"CLAIM_DISPATCH_DATABASE_URL": url, "LEDGER": str(ledger)}


@pytest.fixture(scope="module")
def cluster(surroundings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two worker processes with two threads each."""
    import distributed

    home = str(tmp_path_factory.mktemp("prefect-home"))
    environment = {**surroundings, "PREFECT_HOME": home, "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGER}
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=":0", env=environment
    ) as cluster:
        yield cluster


@pytest.fixture
def engine(surroundings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The module's table, emptied."""
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    Path(surroundings["LEDGER"]).unlink(missing_ok=True)
    engine = databases.engine_for(surroundings["CLAIM_DISPATCH_DATABASE_URL"])
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE action_logs RESTART IDENTITY")
    return engine


@pytest.fixture
def runner(cluster: Any, prefect_api: PrefectServer) -> Callable[[], Any]:
    """Make a runner on the cluster, as a deployed flow names it: by its address."""
    from prefect_dask import DaskTaskRunner

    return lambda: DaskTaskRunner(address=cluster.scheduler_address)


@pytest.fixture
def registered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers is forgotten after it."""
    load_modules([PROCESSORS])  # before: nobody would register it again
    monkeypatch.setattr(registry, "_exact", dict(registry._exact))


def test_outcomes_and_logs_come_back_from_worker_processes(
    engine: Engine, runner: Callable[[], Any], prefect_api: PrefectServer
) -> None:
    """And payloads do not go to Prefect on the way."""
    assert_outcomes_come_back(engine, lambda: dispatched(runner()))

    assert_logs_came(engine, prefect_api, with_prints=False)
    assert SECRET.encode() not in prefect_api.stored


@pytest.mark.exhaustive
def test_dead_worker_is_survived(engine: Engine, runner: Callable[[], Any]) -> None:
    """Dask starts again what a dead worker ran. Nothing is executed twice under one claim, or without a record."""
    publish(engine, "r.kill")
    for _ in range(12):
        publish(engine, "r.beside")

    report = dispatched(runner(), max_concurrency=8)

    (killer,) = operations.find(engine, type="r.kill")
    assert report.processed == 13
    assert [error["kind"] for error in killer.errors] == ["crashed"]
    assert_crashes_are_on_record(engine)


@pytest.mark.exhaustive
def test_tasks_that_submit_tasks_do_not_wait_for_ever(engine: Engine, runner: Callable[[], Any]) -> None:
    """With every thread of the cluster taken by one of them, nothing would be left for what they wait for."""
    for _ in range(8):
        publish(engine, "r.nest")

    assert dispatched(runner(), max_concurrency=8).processed == 8


@pytest.mark.exhaustive
def test_worker_with_another_table_refuses(
    engine: Engine, runner: Callable[[], Any], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find none of the rows, and the claim flow would claim them again and again."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", sqlite_url)
    elsewhere = databases.engine_for(sqlite_url)
    publish(elsewhere, "r.note")

    report = dispatched(runner())

    (row,) = operations.find(elsewhere)
    assert (report.retrying, row.fail_count) == (1, 1)
    assert "CLAIM_DISPATCH_DATABASE_URL" in row.last_error


@pytest.mark.exhaustive
def test_processor_that_workers_have_not_got_is_an_error_of_its_rows(
    engine: Engine, runner: Callable[[], Any], registered_here: None
) -> None:
    """As when the workers have an older image; the message says what to deploy where."""
    processor("r.new")(nothing)  # of a module that registers nothing of that type when a worker imports it
    publish(engine, "r.new")

    report = dispatched(runner())

    (row,) = operations.find(engine)
    assert report.retrying == 1
    assert "deploy the same code there" in row.last_error


def test_processor_without_a_name_is_refused_before_anything_is_claimed(
    engine: Engine, runner: Callable[[], Any], registered_here: None
) -> None:
    """A function inside of another can't be imported in a worker."""

    @processor("r.local")
    def local() -> None: ...

    publish(engine, "r.local")

    with pytest.raises(RegistrationError, match="can't be imported by its name in a worker process"):
        dispatched(runner())
    assert operations.find(engine)[0].claim_count == 0


@pytest.mark.exhaustive
def test_cluster_of_the_flows_own_is_made_and_ended(engine: Engine, prefect_api: PrefectServer) -> None:
    """The three lines of the documentation: `DaskTaskRunner()` with what its cluster is to be."""
    from prefect_dask import DaskTaskRunner

    publish(engine, "r.beside")

    runner = DaskTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"})
    assert dispatched(runner).processed == 1
