"""What a processor logs and prints, and where it failed, is in its run's log in Prefect, whatever the lane."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from prefect.logging.handlers import APILogHandler
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish
from prefect_claim_dispatch.rows import ActionRow
from tests.acceptance import logging_processors as processors
from tests.acceptance.conftest import Dispatch
from tests.kit.logged import frames_of, logs_of
from tests.kit.prefect_server import PrefectServer

pytestmark = [pytest.mark.timeout(300), pytest.mark.parametrize("database_url", ["postgresql-18"], indirect=True)]

ENDS = {"kill": "SIGKILL", "group": "SIGKILL", "exit": "status 7", "fault": "SIGSEGV", "hang": "time limit"}
SINGLES = (
    "log.plain",
    "log.silent",
    "log.fail",
    "log.flow",
    "log.isolated",
    "log.isolated.fail",
    *(f"log.end.{end}" for end in ENDS),
)
SEVERAL = ("log.row", "log.load", "log.isolated.row")
SECRET = "s3cret-of-a-logging-row"
FAILED = ("log.fail", "log.flow", "log.isolated.fail")


@pytest.fixture
def app_logger() -> Iterator[None]:
    """The application's logger as Prefect sets up its extra loggers."""
    logger, handler = logging.getLogger(processors.LOGGER), APILogHandler()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def said(word: object) -> list[str]:
    """What `say_all` logs, in its order."""
    return [f"run logger {word}", f"print {word}", f"app {word}"]


def spoken(lines: list[str]) -> list[str]:
    """What of *lines* `say_all` has logged."""
    return [line for line in lines if line.startswith(("run logger ", "print ", "app "))]


def test_what_is_logged_printed_and_raised_is_in_the_runs_log(
    engine: Engine, dispatch: Dispatch, prefect_api: PrefectServer, app_logger: None
) -> None:
    """In every lane of the flow's process and its children, the last lines before a kill included."""
    ids = {type_: publish(engine, type_, {"secret": SECRET}).id for type_ in SINGLES}
    pairs = {type_: [publish(engine, type_, {"secret": SECRET}).id or 0 for _ in range(2)] for type_ in SEVERAL}
    for type_, (first, second) in pairs.items():
        assert first % 2 != second % 2, type_

    report = dispatch(processors=[processors.__name__])

    rows = {row.type: row for row in operations.find(engine)}
    logs = logs_of(prefect_api, {type_: row.run_id or "" for type_, row in rows.items()})
    assert report.dead == len(FAILED) + len(ENDS) + len(SEVERAL), report
    for type_ in ("log.plain", "log.flow", "log.isolated.fail", *(f"log.end.{end}" for end in ENDS)):
        assert spoken(logs[type_]) == said(ids[type_]), type_
    assert spoken(logs["log.silent"]) == []
    assert_isolated_knows_its_run(prefect_api, logs["log.isolated"], ids["log.isolated"] or 0, rows["log.isolated"])
    assert_tracebacks_begin_with_the_author(logs, ids)
    for end, told in ENDS.items():
        (line,) = [line for line in logs[f"log.end.{end}"] if line.startswith("Task run failed with exception")]
        assert told in line
        assert (" in end" in line) is (end in ("fault", "hang")), line
    assert_rows_of_batches_are_told(logs, pairs)
    assert SECRET.encode() not in prefect_api.stored


def assert_isolated_knows_its_run(server: PrefectServer, lines: list[str], id_: int, row: ActionRow) -> None:
    """Its child has the contexts of both runs, and so have tasks that it calls in turn."""
    flow_run = server.get(f"flow_runs/{row.claimed_by}")
    assert spoken(lines) == said(f"{id_} in log.isolated #{id_} (attempt 1) of {flow_run['name']}")
    wanted = {"logs": {"flow_run_id": {"any_": [row.claimed_by]}}, "limit": 200}
    nested = {log["message"]: log["task_run_id"] for log in server.post("logs/filter", wanted)}
    assert {f"nested {id_}", f"nested {id_ + 1000}"} <= nested.keys()
    assert row.run_id not in (nested[f"nested {id_}"], nested[f"nested {id_ + 1000}"])


def assert_tracebacks_begin_with_the_author(logs: dict[str, list[str]], ids: dict[str, int | None]) -> None:
    """And have no frame of Prefect's or of ours."""
    for type_, name in (("log.fail", "fail"), ("log.isolated.fail", "isolated_fail")):
        beginning = f"Task run failed with exception: MailRefusedError('refused {ids[type_]}')"
        assert frames_of(logs[type_], beginning) == [name, "refuse"], logs[type_]
    assert frames_of(logs["log.flow"], "Encountered exception during execution") == ["run_flow", "refuse"]


def assert_rows_of_batches_are_told(logs: dict[str, list[str]], pairs: dict[str, list[int]]) -> None:
    """Each that failed, with its error and traceback; how all ended comes last."""
    for type_, name in (("log.row", "row"), ("log.isolated.row", "isolated_row")):
        (even,) = [id_ for id_ in pairs[type_] if id_ % 2 == 0]
        assert spoken(logs[type_]) == [line for id_ in sorted(pairs[type_]) for line in said(id_)]
        beginning = f"{type_} #{even} (attempt 1) failed: {processors.__name__}.MailRefusedError: refused {even}\n"
        assert frames_of(logs[type_], beginning) == [name, "refuse"], logs[type_]
        assert f"failed 1, processed 1 (#{even})" in logs[type_]
    first = min(pairs["log.load"])
    assert spoken(logs["log.load"]) == said(first)
    assert f"log.load #{first} (attempt 1) failed: ValueError: answered {first}" in logs["log.load"]
