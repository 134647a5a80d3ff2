"""The auditor: a clean history has no violations, and each doctored one has exactly the violation put into it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import engines, operations, publish
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.outcomes import Failed, Processed, Snooze
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.rows import ActionRow
from prefect_claim_dispatch.settling import settle
from tests.kit.auditor import CHECKS, audit, examine, report
from tests.kit.cases import Case
from tests.kit.ledger import VARIABLE, Entry, Ledger, Lines, PublishLog, What
from tests.kit.processes import Processes
from tests.kit.tables import TABLE, change, claim_due, expire_leases, make_due, verdicts

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = 7
AT_ONCE = RetryPolicy(backoff=timedelta(0))


def line(what: What, at: float, claim_count: int = 1, **values: Any) -> Entry:
    """One line about our action, *at* seconds after noon."""
    wall = NOON.timestamp() + at
    defaults = {"id": ID, "key": "action_logs:7", "type": "a", "due": NOON.isoformat(), "pid": 1}
    return Entry(what=what, at=at, wall=wall, claim_count=claim_count, **(defaults | values))


def error(claim_count: int, kind: str = "crashed") -> dict[str, Any]:
    """An entry of `errors`."""
    return {"attempt": claim_count, "claim_count": claim_count, "kind": kind, "type": "E", "message": "m"}


def action(**values: Any) -> ActionRow:
    """Our action, processed under its second claim, after the first had crashed."""
    defaults: dict[str, Any] = {
        "id": ID,
        "type": "a",
        "payload": {},
        "end_at": NOON,
        "priority": 0,
        "idempotency_key": "k",
        "ordering_key": None,
        "status": ActionStatus.PROCESSED,
        "claimed_at": NOON + timedelta(seconds=20),
        "claimed_by": "flow-run",
        "claim_count": 2,
        "lease_expires_at": None,
        "run_id": None,
        "fail_count": 1,
        "errors": (error(1),),
        "processed_at": NOON + timedelta(seconds=30),
        "settled_at": NOON + timedelta(seconds=30),
        "created_at": NOON,
        "updated_at": NOON + timedelta(seconds=30),
    }
    return ActionRow(**(defaults | values))


ASKED = line("asked", 0, id=0, key="k", token="t")
PUBLISHED = line("published", 1, key="k", token="t", outcome="created")
FIRST = (line("claim", 10, 1, sent_at=9.0), line("begin", 11, 1))
SECOND = (
    line("claim", 20, 2, sent_at=19.0),
    line("begin", 21, 2),
    line("end", 22, 2, outcome="processed"),
    line("accepted", 24, 2, outcome="processed", sent_at=23.0),
)
CLEAN = Case(
    rows=[action()],
    now=NOON + timedelta(minutes=1),
    ledger=Lines((*FIRST, *SECOND)),
    published=Lines((ASKED, PUBLISHED)),
    earlier=[action()],
    workers=[1],
    bad=[],
    patience=timedelta(minutes=1),
    secrets=["hunter2"],
    exposed={"the log": "action #7 processed"},
)


def having(*lines: Entry, row: dict[str, Any] | None = None, **facts: Any) -> Case:
    """The clean case with other lines, or columns, or facts."""
    rows = [action(**row)] if row else CLEAN.rows
    seen = {} if row is None else {"earlier": ()}
    ledger = Lines(lines) if lines else CLEAN.ledger
    return replace(CLEAN, **({"rows": rows, "ledger": ledger} | seen | facts))


PENDING = {"status": ActionStatus.PENDING, "claimed_at": None, "processed_at": None, "settled_at": None}
LATER = {**PENDING, "end_at": NOON + timedelta(hours=1)}
SNOOZED = line("end", 25, 1, outcome="snoozed")
DEAD = {"status": ActionStatus.DEAD, "processed_at": None}

DOCTORED: dict[str, tuple[str, Case]] = {
    "one claim given to two": ("S1", having(FIRST[0], *FIRST, *SECOND)),
    "one claim executed twice": ("S1", having(*FIRST, FIRST[1], *SECOND)),
    "the count of claims fell": ("S1", having(*FIRST, *SECOND, line("claim", 40, 3))),
    "two executions at once": ("S1", having(*FIRST, *SECOND, SNOOZED, row={"errors": (), "fail_count": 0})),
    "a stale write was taken": (
        "S2",
        having(*FIRST, *SECOND, line("accepted", 26, 1, outcome="pending", sent_at=25.0)),
    ),
    "a processed row changed": ("S3", having(earlier=[action(settled_at=NOON + timedelta(seconds=29))])),
    "a cancelled row became pending": (
        "S3",
        having(
            *FIRST,
            line("end", 12, 1, outcome="cancelled"),
            line("accepted", 13, 1, outcome="cancelled", sent_at=12.5),
            row={**LATER, "claim_count": 1},
        ),
    ),
    "an acknowledged row is gone": ("S4", having(rows=[], earlier=())),
    "a pruned row is there": ("S4", having(pruned=[ID])),
    "a row that nobody published": ("S4", having(published=Lines())),
    "a refused publish left a row": ("S4", having(published=Lines((ASKED, line("refused", 1, token="t"))))),
    "more executions than claims": (
        "S5",
        having(
            line("begin", 5, 0),
            line("end", 6, 0, outcome="failed"),
            *FIRST,
            *SECOND,
            row={"errors": (error(0), error(1)), "fail_count": 2},
        ),
    ),
    "more attempts than allowed": ("S5", having(max_attempts=0)),
    "a crash that is recorded and not counted": ("S5", having(row={"fail_count": 0})),
    "a failure that is counted and not recorded": ("S5", having(row={"fail_count": 2})),
    "a failure that nobody counted": (
        "S5",
        having(*FIRST, line("end", 12, 1, outcome="failed"), *SECOND, row={"errors": (), "fail_count": 0}),
    ),
    "a crash that nobody counted": (
        "S5",
        having(*FIRST, row={**LATER, "claim_count": 1, "errors": (), "fail_count": 0}),
    ),
    "two rows of one key": (
        "S6",
        having(
            rows=[action(), action(id=8, status=ActionStatus.CANCELLED, claim_count=0, errors=(), fail_count=0)],
            published=Lines((ASKED, PUBLISHED, replace(ASKED, token="lost"))),
        ),
    ),
    "two rows created of one key, one of them lost from sight": (
        "S6",
        having(
            rows=[
                action(),
                action(
                    id=8, idempotency_key=None, status=ActionStatus.CANCELLED, claim_count=0, errors=(), fail_count=0
                ),
            ],
            published=Lines((ASKED, PUBLISHED, replace(PUBLISHED, id=8))),
        ),
    ),
    "processed, and nobody finished": ("S7", having(*FIRST, *SECOND[:2], SECOND[3])),
    "processed by a claim that failed": (
        "S7",
        having(*FIRST, *SECOND[:2], line("end", 22, 2, outcome="cancelled"), SECOND[3]),
    ),
    "a repeat that nothing explains": ("S7", having(*FIRST, *SECOND, row={"errors": (), "fail_count": 0})),
    "another key in the second attempt": (
        "S7",
        having(*FIRST, SECOND[0], line("begin", 21, 2, key="other"), *SECOND[2:]),
    ),
    "claimed before it was eligible": ("S8", having(row={"end_at": NOON + timedelta(seconds=21)})),
    "begun before it was eligible": (
        "S8",
        having(FIRST[0], line("begin", 11, due=(NOON + timedelta(seconds=12)).isoformat()), *SECOND),
    ),
    "due and still pending": ("L1", having(*FIRST, row={**PENDING, "claim_count": 1})),
    "held for ever": (
        "L1",
        having(
            *FIRST, *SECOND[:2], row={"status": ActionStatus.CLAIMED, "lease_expires_at": NOON, "processed_at": None}
        ),
    ),
    "a process that claims no more": ("L1", having(workers=[1, 2])),
    "a process that has not claimed since": ("L1", having(healed_at=20.5)),
    "a healthy row is dead": ("L2", having(*FIRST, *SECOND[:2], line("end", 22, 2, outcome="cancelled"), row=DEAD)),
    "a healthy row paid for a claim that never began": ("L2", having(FIRST[0], *SECOND)),
    "a healthy row waited for bad ones": ("L2", having(patience=timedelta(seconds=10))),
    "a payload text in a log": ("C1", having(exposed={"the log": "password is hunter2"})),
}


def test_attempts_of_a_rewritten_row_are_counted_anew() -> None:
    """`on_conflict="replace"` is a new intent: its errors stay to be read, and its attempts begin with none."""
    case = having(row={"fail_count": 0})

    assert [violation.promise for violation in examine(case)] == ["S5"]
    assert examine(replace(case, replaced=[ID])) == []


def test_clean_history_has_no_violation() -> None:
    """Crash, rescue, repeat, processed: nothing is wrong with it."""
    assert examine(CLEAN) == []
    assert report([]) == "all promises hold"


@pytest.mark.parametrize("doctored", DOCTORED)
def test_auditor_reports_exactly_what_was_doctored(doctored: str) -> None:
    """An auditor that can't fail is worth nothing; one that cries about everything not much more."""
    promise, case = DOCTORED[doctored]

    found = examine(case)

    assert [violation.promise for violation in found] == [promise], report(found)
    assert "hunter2" not in report(found)
    assert found[0].ids in ((ID,), (8,), (ID, 8), ()), "the row is named"


def test_every_promise_can_be_broken() -> None:
    """A check that no doctored history trips is not tested."""
    assert {promise for promise, _ in DOCTORED.values()} == {
        *(f"S{number}" for number in range(1, 9)),
        *("L1", "L2", "C1"),
    }
    for check in CHECKS:
        assert any(list(check(case)) for _, case in DOCTORED.values()), f"{check.__name__} has never reported anything"


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(having(earlier=[action(claim_count=1)], retried=[ID]), id="sent again by an operator"),
        pytest.param(having(rows=[], earlier=(), pruned=[ID]), id="pruned"),
        pytest.param(having(published=Lines((ASKED,))), id="acknowledgement lost, row there"),
        pytest.param(having(rows=[], earlier=(), published=Lines((ASKED,))), id="acknowledgement lost, no row"),
        pytest.param(
            having(*FIRST, row={**PENDING, "claim_count": 1}, unroutable=["a"]), id="nobody registered its type"
        ),
        pytest.param(having(*FIRST, row={**PENDING, "claim_count": 1}, ended=False), id="not over yet"),
        pytest.param(having(*FIRST, row={**LATER, "claim_count": 1}), id="waits for its next attempt"),
        pytest.param(
            having(
                *FIRST,
                *SECOND,
                line("end", 25, 1, outcome="processed"),
            ),
            id="a zombie finishes late, and is not believed",
        ),
        pytest.param(having(*FIRST, *SECOND, line("accepted", 21, 1, sent_at=19.0)), id="taken before, noted after"),
        pytest.param(
            having(
                *FIRST,
                *(replace(entry, claim_count=9) for entry in SECOND),
                row={"claim_count": 9, "fail_count": 5, "errors": tuple(map(error, range(4, 9)))},
                bad=None,
            ),
            id="errors keep only the last few",
        ),
    ],
)
def test_what_may_happen_is_no_violation(case: Case) -> None:
    """A promise with its exceptions; an auditor that objects to those would soon be switched off."""
    assert examine(case) == [], report(examine(case))


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Any:
    """An engine on SQLite with an empty action table."""
    engine = engines.create(sqlite_url)
    yield engine
    engine.dispose()


def lived(engine: Engine, folder: Path) -> tuple[Ledger, PublishLog, list[int]]:
    """Three actions that really live: one crashes and is rescued, one fails, one snoozes; then all are processed."""
    ledger, log = Ledger(folder / "ledger"), PublishLog(folder / "published")
    ids: list[int] = []
    for number in range(3):
        token = log.asked("a", f"k{number}")
        receipt = publish(engine, "a", {"n": number}, idempotency_key=f"k{number}")
        log.published(token, receipt, "a", f"k{number}")
        ids.append(receipt.id or 0)
    crashed, failed, snoozed = (raw.action() for raw in claim_due(engine))
    ledger.begin(crashed)
    with pytest.raises(ZeroDivisionError), ledger.attempt(failed):
        1 / 0  # noqa: B018
    ledger.begin(snoozed)
    ledger.end(snoozed, "snoozed")
    settle(engine, TABLE, verdicts(Failed(error_type="E", message="m"), [failed], AT_ONCE))
    settle(engine, TABLE, verdicts(Snooze(timedelta(0)), [snoozed]))
    expire_leases(engine, crashed.id)
    rescue(engine, TABLE, lambda _: AT_ONCE, limit=10)
    make_due(engine, *ids)
    again = [raw.action() for raw in claim_due(engine)]
    ledger.claimed(again)
    for action_ in again:
        with ledger.attempt(action_):
            pass
    settle(engine, TABLE, verdicts(Processed(), again))
    return ledger, log, ids


def test_real_history_is_clean_and_real_damage_is_found(sqlite_engine: Engine, tmp_path: Path) -> None:
    """The package's own functions and a real table, and what a hand in that table does to it."""
    ledger, log, ids = lived(sqlite_engine, tmp_path)
    finished = operations.find(sqlite_engine, limit=None)

    assert report(audit(sqlite_engine, ledger, log, earlier=finished)) == "all promises hold"

    damage: list[tuple[Callable[[], Any], set[str]]] = [
        (lambda: change(sqlite_engine, ids[0], errors=[]), {"S3", "S5", "S7"}),
        (lambda: change(sqlite_engine, ids[1], claim_count=1), {"S1", "S3", "S5", "S7"}),
        (lambda: operations.prune(sqlite_engine, timedelta(0), statuses=["processed"]), {"S4"}),
    ]
    for do, promises in damage:
        do()
        assert {one.promise for one in audit(sqlite_engine, ledger, log, earlier=finished)} >= promises


WRITER = """
import os, signal, sys
from pathlib import Path
from tests.kit.ledger import Entry, Ledger
ledger = Ledger.of_environment()
for number in range(1, 101):
    ledger.write(Entry(what="begin", id=number, claim_count=1))
torn = os.open(next(iter(ledger.folder.glob(f"{os.getpid()}-*"))), os.O_WRONLY | os.O_APPEND)
os.write(torn, b'{"what": "end", "id": 10')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ledger_survives_a_kill_in_the_middle_of_a_line(children: Processes, tmp_path: Path) -> None:
    """What was written whole is there, of all processes; the torn line is counted, not believed."""
    writers = [children.python("-c", WRITER, env={VARIABLE: str(tmp_path / "ledger")}) for _ in range(2)]
    for writer in writers:
        assert writer.wait() == -signal.SIGKILL, writer.errors

    lines = Ledger(tmp_path / "ledger").read()

    assert lines.torn == 2
    assert {entry.pid for entry in lines.entries} == {writer.pid for writer in writers}
    assert sorted(entry.id for entry in lines.entries) == sorted([*range(1, 101)] * 2)
    assert [entry.at for entry in lines.entries] == sorted(entry.at for entry in lines.entries)


def test_ledger_of_a_forked_child_is_a_file_of_its_own(tmp_path: Path) -> None:
    """A child that dies in mid-line must not tear what its parent writes."""
    ledger = Ledger(tmp_path, durable=True)
    ledger.write(Entry(what="begin", id=1))
    parent, ledger._file = ledger._file, (os.getpid() + 1, ledger._file[1]) if ledger._file else None

    ledger.write(Entry(what="begin", id=2))

    assert parent
    os.close(parent[1])
    ledger.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert [entry.id for entry in ledger.read().entries] == [1, 2]


def test_ledger_refuses_a_line_that_could_be_torn_by_others(tmp_path: Path) -> None:
    """Only short lines are appended in one piece."""
    ledger = Ledger(tmp_path)

    with pytest.raises(ValueError, match="at most"):
        ledger.write(Entry(what="asked", key="k" * 5_000))
    assert ledger.read() == Lines()
