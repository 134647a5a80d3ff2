"""A rolling deploy: old and new code on one table, while its schema becomes the next one, and afterwards.

The next schema is what the additive rule of docs/migrations.md allows: a column with a server default, and an index.
"Old code" names the columns of today, "new code" that one too. That new code refuses an old schema is shown by
tests/conformance/test_migrations.py.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import LockNotAvailable
from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, func, insert, select, text

from prefect_claim_dispatch import Action, Receipt, Snooze, claiming, engines, operations, processor, publish, settling
from prefect_claim_dispatch import rescuing as rescuing_module
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.processors import Registry
from tests.kit.auditor import audit, report
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.looping import ThreadDispatcher, run_loop
from tests.kit.tables import TABLE, by_status, claim_due, expire_leases, verdicts
from tests.kit.waiting import wait_until
from tests.soak.notes import Notes
from tests.soak.witness import watch

pytestmark = pytest.mark.timeout(120)

STAY, LEASE = timedelta(seconds=0.5), timedelta(seconds=12)
TYPE, ARRIVING = "a", "arrives.with.the.deploy"
COLUMN = "ALTER TABLE action_logs ADD COLUMN origin text NOT NULL DEFAULT 'unknown'"
INDEX = "CREATE INDEX CONCURRENTLY ix_action_logs_origin ON action_logs (origin, end_at) WHERE status = 'pending'"


def tomorrows_table() -> Table:
    """The table as the code of the next release knows it."""
    table = TABLE.to_metadata(MetaData())
    table.append_column(Column("origin", Text, nullable=False, server_default=text("'unknown'")))
    return table


TOMORROW = tomorrows_table()


class Fleet:
    """Publishers and claim loops, each in a thread with an engine of its own, until `drain`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.ledger, self.log = Ledger(folder / "ledger"), PublishLog(folder / "published")
        self.errors: list[BaseException] = []
        self._no_more = threading.Event()
        self._publishers: list[threading.Thread] = []
        self._loops: list[threading.Thread] = []

    def claim(self, name: str, table: Table, *types: str) -> None:
        """Claim loops, one after the other, as a schedule starts them, that have processors of *types*."""
        registry = Registry()
        for type_ in types:
            processor(type_, registry=registry)(self._work)

        def live(engine: Engine) -> None:
            is_last = False
            while not is_last:
                is_last, dispatcher = self._no_more.is_set(), ThreadDispatcher(4)
                run_loop(engine, registry, dispatcher, table=table, claimed_by=name, stay=STAY, lease=LEASE, limit=8)
                dispatcher.close()

        self._loops.append(self._start(live))

    def publish(self, seed: int, *, origin: str | None = None) -> None:
        """A publisher; with *origin*, one that writes the new column, by an INSERT of its own."""
        dice = random.Random(seed)

        def live(engine: Engine) -> None:
            for number in itertools.count():
                if self._no_more.wait(0.05):
                    return
                payload = {"fails": dice.choice([0, 0, 0, 1, 2]), "snoozes": dice.random() < 0.1}
                key = f"{seed}-{number // 2}" if origin is None and dice.random() < 0.3 else None
                token = self.log.asked(TYPE, key)
                with engine.begin() as connection:
                    receipt = (
                        publish(connection, TYPE, payload, idempotency_key=key)
                        if origin is None
                        else inserted(connection, payload, origin)
                    )
                self.log.published(token, receipt, TYPE, key)

        self._publishers.append(self._start(live))

    def drain(self) -> None:
        """Publish no more; wait until the loops have found nothing to do for a while."""
        self._no_more.set()
        for thread in (*self._publishers, *self._loops):
            thread.join(40)
            assert not thread.is_alive(), "a publisher or loop has not ended"

    def _start(self, live: Any) -> threading.Thread:
        def run() -> None:
            engine = engines.create(self.url)
            try:
                live(engine)
            except BaseException as error:
                self.errors.append(error)
            finally:
                engine.dispose()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _work(self, payload: dict[str, Any], action: Action) -> Snooze | None:
        self.ledger.begin(action)
        if payload.get("snoozes") and action.claim_count == 1:
            self.ledger.end(action, "snoozed")
            return Snooze(timedelta(seconds=0.05))
        if action.fail_count < payload.get("fails", 0):
            self.ledger.end(action, "failed")
            msg = "as drawn"
            raise RuntimeError(msg)
        self.ledger.end(action)
        return None


def inserted(connection: Connection, payload: dict[str, Any], origin: str) -> Receipt:
    """A row as the next release's publishers write it."""
    values = {"type": TYPE, "payload": payload, "origin": origin}
    id_ = connection.execute(insert(TOMORROW).values(values).returning(TOMORROW.c.id)).scalar_one()
    return Receipt(id=id_, outcome="created")


@pytest.fixture
def fleet(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Nobody yet; everything that a loop is given, and that the table takes of it, is written down."""
    for module, name in [(claiming, "claim"), (claiming, "renew"), (settling, "settle"), (rescuing_module, "rescue")]:
        monkeypatch.setattr(module, name, getattr(module, name))  # as it was, after the test
    fleet = Fleet(postgres_url, tmp_path)
    watch(fleet.ledger, Notes(tmp_path / "notes"))
    yield fleet
    fleet.drain()


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """The onlooker's."""
    engine = engines.create(postgres_url)
    yield engine
    engine.dispose()


def processed(engine: Engine) -> int:
    return by_status(engine).get("processed", 0)


def go_on(engine: Engine, number: int = 20) -> None:
    """Wait until so many more actions are processed."""
    wanted = processed(engine) + number
    wait_until(lambda: processed(engine) >= wanted, description="the fleet goes on", timeout=30)


def changed(admin: psycopg.Connection, ddl: str) -> int:
    """Change the table as docs/migrations.md says; returns how often that was in vain."""
    for tries in itertools.count():
        with suppress(LockNotAvailable):
            admin.execute(ddl)
            return tries
    raise AssertionError


def claimed_by(engine: Engine) -> set[tuple[str, str]]:
    """Whose rows were processed by whom: (origin, claimed by)."""
    found = select(TOMORROW.c.origin, TOMORROW.c.claimed_by).where(TOMORROW.c.status == "processed").distinct()
    with engine.connect() as connection:
        return {(origin, by) for origin, by in connection.execute(found)}


def is_rescued(engine: Engine, ids: list[int]) -> bool:
    return all(operations.get(engine, id_).fail_count for id_ in ids)


def test_old_and_new_code_work_side_by_side_while_the_schema_changes(fleet: Fleet, engine: Engine) -> None:
    """S1 to S4: publishers and claim flows live through the change, and old and new do each other's rows."""
    held = publish_noted(fleet, engine, ARRIVING, 2)
    zombies = claim_due(engine, ARRIVING)
    for number in (1, 2):
        fleet.claim(f"old-{number}", TABLE, TYPE)
        fleet.publish(number)
    go_on(engine)

    with ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(fleet.url.replace("+psycopg", ""), autocommit=True))
        admin.execute("SET lock_timeout = '100ms'")
        with engine.begin() as connection:  # an application's long transaction, which the change has to wait for
            token = fleet.log.asked(TYPE)
            receipt = publish(connection, TYPE, {})
            with pytest.raises(LockNotAvailable):
                admin.execute(COLUMN)
            go_on(engine)
        fleet.log.published(token, receipt, TYPE)
        changed(admin, COLUMN)
        admin.execute("SET lock_timeout = 0")  # it waits for old transactions, and nobody waits for it
        admin.execute(INDEX)
    go_on(engine, 60)
    fleet.claim("new", TOMORROW, TYPE, ARRIVING)
    fleet.publish(3, origin="tomorrow")
    expire_leases(engine, *held)
    both = {(origin, by) for origin in ("unknown", "tomorrow") for by in ("old-1", "old-2", "new")}
    wait_until(lambda: claimed_by(engine) >= both, description="all have done rows of both kinds", timeout=30)
    wait_until(lambda: is_rescued(engine, held), description="what died with old code is taken back", timeout=30)
    operations.reschedule(engine, held, delay=timedelta(0))  # old code took it back, and let it wait as it knows best
    is_held_done = lambda: {operations.get(engine, id_).status for id_ in held} == {"processed"}  # noqa: E731
    wait_until(is_held_done, description="what died with old code is done by new", timeout=30)
    late = settling.settle(engine, TABLE, verdicts(Processed(), zombies), {})
    fleet.drain()

    broken = audit(engine, fleet.ledger, fleet.log)
    assert not broken, report(broken)
    assert fleet.errors == []
    assert late == set()
    assert set(by_status(engine)) == {"processed"}
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(TABLE)).scalar_one() >= 100


def publish_noted(fleet: Fleet, engine: Engine, type_: str, number: int) -> list[int]:
    """Publish, and keep what was asked and answered."""
    ids: list[int] = []
    for _ in range(number):
        token = fleet.log.asked(type_)
        receipt = publish(engine, type_, {})
        fleet.log.published(token, receipt, type_)
        ids.append(receipt.id or 0)
    return ids
