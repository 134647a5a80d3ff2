"""A short soak on each database: whole processes under a shuffled pack of faults, then the auditor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.kit import keeping, processes
from tests.kit.cases import Violation
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Processes
from tests.kit.waiting import wait_until
from tests.soak.chaos import STOP, STOP_WRITER, Fault
from tests.soak.findings import Findings
from tests.soak.recoveries import Recovery
from tests.soak.scenario import Database, Scenario
from tests.soak.soaking import soak

pytestmark = pytest.mark.timeout(420)
SEEDS = (11, 12, 13)
SECONDS: dict[Database, float] = {"postgresql": 28.0, "sqlite": 15.0}


@pytest.fixture
def folder() -> Path:
    """A short path where nothing is yet, in the run's folder: the keeper finds its PostgreSQL even after a SIGKILL."""
    return keeping.run_folder() / f"soak-{os.getpid()}-{os.urandom(2).hex()}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("database", SECONDS)
def test_short_soak_breaks_no_promise(database: Database, folder: Path, prefect_server: PrefectServer) -> None:
    """S1 to S8 and L1, of every row, after kills, stops, restarts and cuts; and the faults did reach the table."""
    findings = _soaked(database, folder, prefect_server, SEEDS[0])
    for seed in SEEDS[1:]:
        # Whether a stopped process wakes with work in hand is luck; a slow machine may need another deal.
        if not findings.counts["stale settles attempted"]:
            findings = _soaked(database, folder, prefect_server, seed)

    assert findings.counts["stale settles attempted"] > 0, findings.table
    assert findings.counts["stale settles accepted"] == 0
    assert findings.faults[STOP] + findings.faults[STOP_WRITER] > 0
    assert findings.faults["kill"] > 0
    assert findings.counts["rows processed in the end"] > 50


def _soaked(database: Database, folder: Path, prefect_server: PrefectServer, seed: int) -> Findings:
    """What a short soak found, which is no broken promise."""
    scenario = Scenario(database=database, seconds=SECONDS[database], seed=seed, claimants=3)
    findings = soak(scenario, Path(f"{folder}-{seed}"), prefect_server.env)
    assert findings.violations == [], findings.table
    return findings


def test_table_of_findings_names_what_is_broken() -> None:
    """Whoever reads the end of an hour's run must not have to open a file."""
    findings = Findings(
        faults={"kill": 2},
        counts={"claims": 1_234},
        recoveries=[recovered(1.0), recovered(2.0), recovered(9.0)],
        undisturbed=[recovered(9.0)],
        bound_seconds=5.5,
        violations=[Violation("S7", (7,), "#7: ran again")],
    )

    lines = findings.table.splitlines()

    assert lines[0].split() == ["done", "to", "it:", "kill", "2"]
    assert lines[1].split() == ["claims", "1,234"]
    assert lines[-2].endswith("#7: 9.00 s = 6.00 until 42 claimed it, 3.00 in its line")
    assert lines[-1] == "S7: #7: ran again"
    recovery = findings.as_dict["recovery"]
    assert recovery["all"] == {"rows": 3, "p50": 2.0, "p95": 9.0, "p99": 9.0}
    assert recovery["undisturbed"] == {"rows": 1, "p50": 9.0, "p95": 9.0, "p99": 9.0}


def recovered(seconds: float, **options: Any) -> Recovery:
    """A row of a process that was killed at 100.0, claimed anew by the process 42 after two thirds of the time."""
    times = {"at": 100.0, "claimed_at": 100.0 + seconds * 2 / 3, "until": 100.0 + seconds}
    return Recovery(**{"id": 7, "holder": 42, "is_direct": True, "is_moved": False, **times, **options})


@pytest.mark.parametrize(
    ("fault", "is_undisturbed"),
    [
        (Fault(what="stop", at=107.0, until=107.5, pid=42), True),
        (Fault(what="stop", at=107.0, until=108.0, pid=43), True),
        (Fault(what="stop", at=107.0, until=108.5, pid=42), False),
        (Fault(what="blackhole", at=90.0, until=100.5), False),
        (Fault(what="blackhole", at=90.0, until=99.5), True),
    ],
)
def test_recovery_is_disturbed_by_what_meets_the_database_or_the_next_holder(
    fault: Fault, is_undisturbed: bool
) -> None:
    """Here the next holder is the process 42, from 108.0 on: what met it before delayed nothing."""
    assert recovered(12.0).is_undisturbed([fault]) == is_undisturbed
    assert not recovered(12.0, is_direct=False).is_undisturbed([])
    assert not recovered(12.0, is_moved=True).is_undisturbed([])


def test_interrupted_soak_leaves_nothing_behind(children: Processes, folder: Path) -> None:
    """Ctrl-C in the middle of an hour's run: claimants, a stopped one among them, and servers are gone with it."""
    folder.mkdir()
    options = ["--minutes", "5", "--database", "sqlite", "--claimants", "2", "--flows", "0"]
    run = children.python("-m", "tests.soak", *options, env={"TMPDIR": str(folder)})
    wait_until(lambda: list(folder.glob("pcd-*/soak/ledger/*")), description="a claim was made", timeout=120)
    (inner,) = folder.glob("pcd-*")
    before = processes.marked(keeping.RUN, str(inner))

    run.interrupt()
    code = run.wait(90)

    assert before, "nothing ran that could have been left"
    assert code != 0
    assert processes.marked(keeping.RUN, str(inner)) == []
    assert list(folder.iterdir()) == []
