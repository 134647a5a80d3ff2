"""A row that kills its process, again and again: it ends dead, and takes at most one attempt of anybody else."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import operations, publish_many
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.publishing import Publisher
from prefect_claim_dispatch.rescuing import rescue
from tests.kit.ledger import VARIABLE, Ledger
from tests.kit.prefect_server import PrefectServer
from tests.kit.processes import Child, Processes
from tests.kit.tables import TABLE, expire_leases
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

SIBLINGS = 100
MAX_ATTEMPTS = 3  # as in `killing`, which only the children can import

StartFlow = Callable[[], Child]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What was executed, whatever the table says."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_flow(children: Processes, prefect_server: PrefectServer, ledger: Ledger, database_url: str) -> StartFlow:
    """Start one claim flow by the command line, with four slots."""

    def start() -> Child:
        return children.python(
            "-m", "prefect_claim_dispatch.cli", "run", "--json", "--processors", "tests.faults.killing",
            "--lease", "3s", "--stay", "5s",
            env={
                **prefect_server.env,
                "CLAIM_DISPATCH_DATABASE_URL": database_url,
                "CLAIM_DISPATCH_MAX_CONCURRENCY": "4",
                VARIABLE: str(ledger.folder),
            },
        )  # fmt: skip

    return start


def publish_all(engine: Engine, types: Iterable[str]) -> list[int]:
    """Publish one action of each of *types*; their ids."""
    publisher = Publisher(engine)
    return [receipt.id or 0 for receipt in publish_many(engine, map(publisher.draft, types))]


def ends_of_flows(start: StartFlow) -> list[int]:
    """Start a flow again and again, as a schedule does, until one ends by itself; how each ended."""
    ends: list[int] = []
    for _ in range(2 * MAX_ATTEMPTS + 1):
        ends.append(start().wait(120))
        if ends[-1] == 0:
            break
    return ends


@pytest.mark.parametrize(
    ("database_url", "lane"),
    [
        ("sqlite", "k"),
        pytest.param("postgresql-18", "k", marks=pytest.mark.exhaustive),
        pytest.param("sqlite", "k.batch", marks=pytest.mark.exhaustive),
    ],
    indirect=["database_url"],
)
def test_row_that_kills_its_process_takes_one_attempt_of_its_siblings_at_most(
    engine: Engine, start_flow: StartFlow, ledger: Ledger, lane: str
) -> None:
    """The poison row's price is its own, in a batch too: dead after its attempts, and all others processed."""
    half = [f"{lane}.sibling"] * (SIBLINGS // 2)
    ids = publish_all(engine, [*half, f"{lane}.killer", *half])
    killer = ids[SIBLINGS // 2]

    ends = ends_of_flows(start_flow)

    rows = {row.id: row for row in operations.find(engine, limit=None)}
    executed = Counter(entry.id for entry in ledger.read().entries if entry.what == "begin")
    siblings = [rows[id_] for id_ in ids if id_ != killer]
    assert ends == [-signal.SIGKILL] * MAX_ATTEMPTS + [0]
    assert (rows[killer].status, rows[killer].fail_count, executed[killer]) == ("dead", MAX_ATTEMPTS, MAX_ATTEMPTS)
    assert {str(row.status) for row in siblings} == {"processed"}
    lost = Counter(row.fail_count for row in siblings)
    assert set(lost) <= {0, 1}, f"attempts lost by siblings: {lost}"
    if lane == "k":  # four slots: twice it had company, and what waited for a slot beside it has lost nothing
        assert lost[1] <= 2 * 3
    for row in siblings:
        assert 1 <= executed[row.id] <= 1 + row.fail_count


@pytest.mark.parametrize(
    "database_url", [pytest.param("sqlite", marks=pytest.mark.exhaustive), "postgresql-18"], indirect=True
)
@pytest.mark.parametrize(("type_", "at_stake"), [("k.long", 4), ("k.long.batch", 8)])
def test_row_that_surely_never_began_loses_no_attempt(
    engine: Engine, start_flow: StartFlow, ledger: Ledger, type_: str, at_stake: int
) -> None:
    """Killed without a signal: what had a slot may have begun and is counted; what only waited for one is not."""
    publish_all(engine, [type_] * 20)
    flow = start_flow()
    wait_until(lambda: begun(ledger) >= 4, description="all slots are taken", timeout=60)
    claimed = {row.id for row in operations.find(engine, status="claimed", limit=None)}
    flow.kill()
    assert flow.wait(30) == -signal.SIGKILL

    expire_leases(engine, *claimed)
    rescue(engine, TABLE, lambda _: RetryPolicy(), limit=100)

    rows = operations.find(engine, limit=None)
    charged = {row.id for row in rows if row.fail_count}
    assert len(charged) == at_stake
    assert charged >= {entry.id for entry in ledger.read().entries if entry.what == "begin"}
    assert {str(row.status) for row in rows} == {"pending"}
    if type_ == "k.long":
        assert len(claimed - charged) == 4  # read ahead
        assert charged == {entry.id for entry in ledger.read().entries if entry.what == "begin"}


def begun(ledger: Ledger) -> int:
    """How many executions have begun."""
    return sum(entry.what == "begin" for entry in ledger.read().entries)
