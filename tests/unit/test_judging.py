"""What the doctor concludes where a test can't be the cause: root writes every file, slots need a standby."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_claim_dispatch.diagnosing.facts import Pin, ServerFacts, TupleFacts
from prefect_claim_dispatch.diagnosing.findings import Level, warning
from prefect_claim_dispatch.diagnosing.judging import MANY_TRANSACTIONS, PATIENCE, judge_server, judge_vacuum, rough

SQLITE = {"dialect": "sqlite", "version": "3.45", "journal_mode": "wal", "file": Path("there/actions.db")}
NO_DEAD = TupleFacts(live=10, dead=0)


def told(facts: ServerFacts) -> list[tuple[Level, str]]:
    return [(finding.level, finding.what) for finding in judge_server(facts) if finding.remedy]


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"is_file_writable": False}, "the file of"),
        ({"is_folder_writable": False}, "the folder of"),
        ({"is_file_writable": False, "is_folder_writable": False}, "the file and folder of"),
    ],
)
def test_file_that_cannot_be_written_is_an_error(facts: dict[str, bool], what: str) -> None:
    """The folder too: SQLite makes its log there."""
    ((level, said),) = told(ServerFacts(**{**SQLITE, **facts}))

    assert level == Level.ERROR
    assert what in said
    assert told(ServerFacts(**SQLITE)) == []


def test_other_journal_mode_is_a_warning() -> None:
    """What SQLite falls back to on a file system that can't share memory."""
    ((level, what),) = told(ServerFacts(**{**SQLITE, "journal_mode": "delete"}))

    assert (level, "instead of wal" in what) == (Level.WARNING, True)


@pytest.mark.parametrize("kind", ["session", "replication slot"])
def test_hold_without_a_time_is_judged_by_transactions(kind: str) -> None:
    """Slots have none, and of others' sessions a plain role sees none."""
    young, old = (
        Pin(kind=kind, who="7 of x", age=None, transactions=number) for number in (MANY_TRANSACTIONS, 2_000_000)
    )

    assert [finding.level for finding in judge_vacuum([young], NO_DEAD, PATIENCE)] == [Level.OK]
    (finding,) = judge_vacuum([old], NO_DEAD, PATIENCE)
    assert (finding.level, "for 2,000,000 transactions" in finding.what) == (Level.WARNING, True)


def test_finding_shows_no_password() -> None:
    """What a driver says may have a URL in it, and this is what people paste into issues."""
    assert "hunter2" not in warning("database", "postgresql://me:hunter2@host/db is away", "look").what


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")]
)
def test_age_is_told_in_one_unit(seconds: int, said: str) -> None:
    """Whoever is on call needs no more."""
    assert rough(timedelta(seconds=seconds)) == said
