"""What every task runner in other processes must do for the task and batch lanes; each runner's tests begin with it."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import SettingsContext, _temporary_global_settings_context
from prefect.task_runners import TaskRunner
from sqlalchemy import Engine

from prefect_claim_dispatch import DispatchReport, claim_dispatch, operations, publish, publish_many
from prefect_claim_dispatch.publishing import Publisher
from prefect_claim_dispatch.rows import ActionRow
from tests.acceptance.processors import ledger
from tests.kit.logged import frames_of, logs_of
from tests.kit.prefect_server import PrefectServer

PROCESSORS = "tests.acceptance.runner_processors"
SECRET = "s3cret-of-the-row"


def nothing() -> None:
    """What a processor might do."""


def dispatched(runner: TaskRunner[Any], **options: Any) -> DispatchReport:
    """What a claim flow with *runner* reports."""
    flow = claim_dispatch.with_options(task_runner=runner)
    return flow(**{"processors": [PROCESSORS], "lease": timedelta(seconds=60), "max_concurrency": 4} | options)


def executions() -> dict[tuple[int, int], list[tuple[str, int]]]:
    """What the ledger has of each claim: word and process of each line."""
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for id_, claim_count, word, pid in ledger():
        found.setdefault((int(id_), int(claim_count)), []).append((word, int(pid)))
    return found


def publish_numbers(engine: Engine, type_: str, number: int) -> None:
    """So many of one type, numbered from 1."""
    publisher = Publisher(engine)
    publish_many(engine, [publisher.draft(type_).payload({"number": n + 1}) for n in range(number)])


def assert_outcomes_come_back(engine: Engine, dispatch: Callable[[], DispatchReport]) -> None:
    """Every kind of outcome, of rows whose payload no other process was sent, is settled as in the flow's process."""
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(tag="r-none", concurrency_limit=0)
    failing = ("raise.huge", "raise.exit", "raise.lock", "raise.pause")
    singles = ("note", "task", *failing, "tagged", "snooze", "cancel", "spin", "settle", "nest", "say")
    for kind in singles:
        publish(engine, f"r.{kind}")
    publish(engine, "r.async", {"secret": SECRET})
    publish_numbers(engine, "r.batch", 12)
    publish_numbers(engine, "r.load", 6)

    report = dispatch()

    rows: dict[str, list[ActionRow]] = {}
    for row in operations.find(engine):
        rows.setdefault(row.type.removeprefix("r."), []).append(row)
    done = {kind: Counter(str(row.status) for row in of_kind) for kind, of_kind in rows.items()}
    assert {kind for kind in done if done[kind] == {"processed": 1}} == {
        *("note", "async", "task", "snooze", "settle", "nest", "say"),
    }
    assert done["cancel"] == {"cancelled": 1}
    assert done["batch"] == {"processed": 10, "dead": 2}
    assert done["load"] == {"processed": 6}
    failed = [
        (of_kind[0].type, of_kind[0].errors[-1]["type"], of_kind[0].last_error)
        for of_kind in rows.values()
        if of_kind[0].errors
    ]
    huge = next(message for type_, _, message in failed if type_ == "r.raise.huge")
    assert len(huge) == 1_000, huge
    assert {(type_, error) for type_, error, _ in failed} == {
        ("r.raise.huge", "RuntimeError"),
        ("r.raise.exit", "SystemExit"),
        ("r.raise.lock", "UnsendableError"),
        ("r.raise.pause", "PauseRefusedError"),
        ("r.tagged", "NotBegun"),
        ("r.snooze", "Snooze"),
        ("r.spin", "TimeoutError"),
        ("r.cancel", "Cancel"),
    }, failed
    assert (report.lost_leases, report.released) == (0, 1)
    assert (done["tagged"], rows["tagged"][0].fail_count) == ({"pending": 1}, 0)
    ran = executions()
    note, nest, batch = rows["note"][0], rows["nest"][0], rows["batch"][0]
    assert [word for word, _ in ran[note.id, 1]] == ["try-1", "try-2"]
    assert ran[rows["async"][0].id, 1][0][0] == SECRET
    assert ran[nest.id, 1][0][0] == "3"
    assert os.getpid() not in {pid for lines in ran.values() for _, pid in lines}
    assert {row.run_id for row in rows["batch"]} == {batch.run_id}
    assert note.run_id != note.claimed_by


def assert_logs_came(engine: Engine, server: PrefectServer, *, with_prints: bool) -> None:
    """What was logged in the worker processes is in the runs' logs, and so is where and why they failed."""
    rows = {row.type: row for row in operations.find(engine)}
    wanted = ("r.say", "r.raise.huge", "r.batch")
    logs = logs_of(server, {type_: rows[type_].run_id or "" for type_ in wanted})
    id_ = rows["r.say"].id
    said = [f"run logger {id_}", f"print {id_}", f"app {id_}"]
    assert set(said if with_prints else (said[0], said[2])) <= set(logs["r.say"]), logs["r.say"]
    assert frames_of(logs["r.raise.huge"], "Task run failed with exception") == ["raise_something"]
    failed = [row for row in operations.find(engine, type="r.batch") if row.status == "dead"]
    assert len(failed) == 2
    for row in failed:
        beginning = f"r.batch #{row.id} (attempt 1) failed: ValueError: five\nTraceback"
        assert frames_of(logs["r.batch"], beginning) == ["note_in_batches"]


def assert_crashes_are_on_record(engine: Engine) -> None:
    """Every execution but the last of each row has its crash in `errors`, and none was executed twice in a claim."""
    ran = executions()
    for row in operations.find(engine):
        claims = sorted(claim for id_, claim in ran if id_ == row.id)
        crashes = [error["claim_count"] for error in row.errors if error["kind"] == "crashed"]
        assert row.status == "processed", row
        assert all(len(ran[row.id, claim]) == 1 for claim in claims), (row, ran)
        assert set(claims[:-1]) <= set(crashes), (row, claims)


@contextmanager
def settings_of_all_threads() -> Generator[None]:
    """The current settings in every thread: a process pool tells Prefect of its runs from one of its own."""
    context = SettingsContext.get()
    assert context is not None
    with _temporary_global_settings_context(context):
        yield
    # The semaphores of a pool's queues: at the end of all tests there is nobody left to hand them back to.
    gc.collect()
