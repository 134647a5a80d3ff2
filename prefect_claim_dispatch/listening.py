"""Listening: a claim flow that stays is woken as soon as something was published, and looks.

One thread with one connection of its own. On PostgreSQL it listens to the table's channel, which the trigger of
:mod:`.wake_ups` notifies; on SQLite it watches the version of the file, which each commit of others changes. It only
makes a look come sooner: whatever happens to it, the loop looks every second all the same.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, NullPool, Table

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE
from prefect_claim_dispatch.errors import DatabaseUnavailableError
from prefect_claim_dispatch.outages import Outage
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.statements.wake import Listen, probe, wake_up

logger = logging.getLogger(__name__)

SPACING: Final = 0.02
"""Seconds between two wake-ups, at least: a flood of notifications is no flood of looks. So often SQLite is looked at,
too."""

LOOK_AGAIN: Final = 60.0
"""Seconds after which it is seen whether the trigger has been installed meanwhile, or the connection is dead."""

PROBE_SECONDS: Final = 5.0
"""How long a notification to oneself may take."""

MOST_UNPROVEN: Final = 3
"""After so many connections by which no notification came, and none that worked before, listening is given up."""

ANSWERED_IN_TIME: Final = timedelta(seconds=20)
"""As a lease, of which all that is asked here may take a quarter."""

END_SECONDS: Final = 2.0
"""How long the thread has to close its connection by itself."""

NEVER: Final = "none"


@contextmanager
def listening(engine: Engine, table: Table, wake: Callable[[], None], *, url: str | None = None) -> Generator[None]:
    """Call *wake*, from another thread, soon after somebody has published into *table*.

    At most fifty times a second, and sometimes for nothing. *url*: where to listen instead, a way to the same database
    that leads around a pooler; ``none`` for nowhere. Nothing is raised and nobody waits: what does not work is logged.
    """
    with ExitStack() as stack:
        listener = _listener_of(engine, table, wake, url, stack)
        if listener is not None:
            listener.start()
            stack.callback(listener.stop)
        yield


def prove(engine: Engine, channel: str, payload: str) -> None:
    """Notify *channel* through *engine*: whoever listens to what is published there must receive it."""
    with engine.begin() as connection:
        connection.execute(probe(), {"channel": channel, "payload": payload})


class _UselessError(Exception):
    """To go on listening makes no sense; the text says why."""


class _Listener(ABC):
    """The thread: it listens again, ever more seldom, when that has failed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._is_stopping = threading.Event()
        self._outage = Outage("publishing does not wake this claim flow, which looks every second meanwhile")
        self._thread = threading.Thread(target=self._run, name="claim-dispatch-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its connection; it is left behind if it can't be reached."""
        self._is_stopping.set()
        self._interrupt()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._cut()
            self._thread.join(END_SECONDS)

    @abstractmethod
    def _listen(self) -> None:
        """Connect, and wake until it is over."""

    def _interrupt(self) -> None:  # noqa: B027 - who looks all the time need not be told
        """End what it waits for."""

    def _cut(self) -> None:  # noqa: B027 - a file answers
        """Let what it asks of the database fail."""

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                with engines.translated():
                    self._listen()
            except _UselessError as reason:
                logger.warning("publishing does not wake this claim flow, which looks every second: %s", reason)
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop looks by itself, and this may go by
                if not self._is_stopping.is_set():
                    self._is_stopping.wait(self._outage.failed(error))

    def _note_success(self) -> None:
        self._outage.ended()
        self._wake()  # for what was published before


class _PostgresListener(_Listener):
    """Listens to the table's channel, on a connection of *there* that nobody else has.

    One of the loop's pool would be missed there: where connections are scarce, no other is to be had to settle by.
    """

    def __init__(
        self, engine: Engine, table: Table, wake: Callable[[], None], there: Engine, *, is_apart: bool
    ) -> None:
        super().__init__(wake)
        self._engine = engine
        self._there = there
        self._is_apart = is_apart
        self._table = table
        self._driver: Any = None
        self._unproven = 0
        self._was_proven = False
        self._ending, self._is_ending = socket.socketpair()

    def stop(self) -> None:
        super().stop()
        if not self._thread.is_alive():
            self._ending.close()
            self._is_ending.close()

    def _interrupt(self) -> None:
        self._ending.send(b".")

    def _cut(self) -> None:
        with suppress(Exception), socket.socket(fileno=os.dup(self._driver.fileno())) as there:
            there.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        with ExitStack() as stack:
            with answered_in_time(ANSWERED_IN_TIME):
                connection = stack.enter_context(self._there.connect().execution_options(isolation_level="AUTOCOMMIT"))
                self._driver = connection.connection.driver_connection
                channel = self._channel(connection)
                if channel is not None:
                    connection.execute(Listen(channel))
                connection.detach()  # from its deadline: it is not given back soon
            if channel is not None:
                self._prove_first(channel)
                self._note_success()
                self._heed(channel)
        if channel is None:
            self._is_stopping.wait(LOOK_AGAIN)

    def _channel(self, connection: Connection) -> str | None:
        """Where to listen; None as long as there is no trigger."""
        found = connection.execute(wake_up(self._table)).one_or_none()
        if found is None or not found.is_there:
            logger.debug("%s has no wake-up; claim-dispatch db wake-up installs it", self._table.fullname)
            return None
        if not self._is_apart and found.backend_pid != self._driver.info.backend_pid:
            # Not tried: what is listened to through a pooler goes on being sent to whoever gets the connection next.
            what = "a pooler stands between; set CLAIM_DISPATCH_LISTEN_URL to a way around it, or to none"
            raise _UselessError(what)
        return found.channel

    def _prove_first(self, channel: str) -> None:
        """As `_expect_proof`, on a new connection: a machine that is slow, or a server that restarts, gets more tries.

        Raises:
            DatabaseUnavailableError: nothing has come, and may by the next connection.
            _UselessError: nothing has come by any connection.
        """
        try:
            self._expect_proof(channel)
        except _UselessError as reason:
            self._unproven += 1
            if self._unproven >= MOST_UNPROVEN and not self._was_proven:
                raise
            raise DatabaseUnavailableError(str(reason)) from None
        self._unproven, self._was_proven = 0, True

    def _expect_proof(self, channel: str) -> None:
        """Send a notification to oneself by the way of those who publish, and wait until it has come.

        Raises:
            _UselessError: it has not.
        """
        payload = str(uuid.uuid4())
        with answered_in_time(ANSWERED_IN_TIME):
            prove(self._engine, channel, payload)
        until = elapsed_clock() + PROBE_SECONDS
        while not self._is_stopping.is_set() and (left := until - elapsed_clock()) > 0:
            received = self._received() if self._has_come(left) else []
            if "" in received:
                self._wake()
            if payload in received:
                return
        if not self._is_stopping.is_set():
            what = (
                "notifications do not arrive: a pooler in transaction mode, or another database; "
                "set CLAIM_DISPATCH_LISTEN_URL to a direct way to the database, or to none"
            )
            raise _UselessError(what)

    def _heed(self, channel: str) -> None:
        """Wake for each that comes, and for several that come together once."""
        while not self._is_stopping.is_set():
            if not self._has_come(LOOK_AGAIN):
                self._check(channel)
            elif "" in self._received():
                self._wake()
                self._is_stopping.wait(SPACING)

    def _check(self, channel: str) -> None:
        """Make sure that the connection lives, though nothing comes; a network can go away without a word."""
        if self._is_stopping.is_set():
            return
        try:
            self._expect_proof(channel)
        except _UselessError:
            msg = "the connection that listens is dead"
            raise DatabaseUnavailableError(msg) from None

    def _has_come(self, within: float) -> bool:
        """Whether the server has sent something in *within* seconds, or less when it is time to end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._driver.fileno(), selectors.EVENT_READ)
            selector.register(self._is_ending, selectors.EVENT_READ)
            ready = selector.select(within)
        return any(key.fileobj is not self._is_ending for key, _ in ready)

    def _received(self) -> list[str]:
        """The payloads of what has come; wake-ups have an empty one."""
        try:
            return [notification.payload for notification in self._driver.notifies(timeout=0)]
        except self._engine.dialect.loaded_dbapi.Error as error:
            reason = redacted(str(error).strip().split("\n")[0], 300)
            msg = f"the connection that listens is lost: {reason}"
            raise DatabaseUnavailableError(msg) from error


class _SqliteListener(_Listener):
    """Watches the version of the file, which a connection sees change when any other has committed.

    The flow's own commits are among them: each costs it one look more, and a look writes nothing.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self._engine = engine

    def _listen(self) -> None:
        with self._engine.connect() as connection:
            cursor: Any = connection.connection.cursor()
            connection.detach()
            seen = self._version(cursor)
            self._note_success()
            while not self._is_stopping.wait(SPACING):
                version = self._version(cursor)
                if version != seen:
                    seen = version
                    self._wake()

    @staticmethod
    def _version(cursor: Any) -> int:
        # Outside of any transaction, so not by way of the engine, which begins one that keeps writers out.
        return cursor.execute("PRAGMA data_version").fetchone()[0]


def _listener_of(
    engine: Engine, table: Table, wake: Callable[[], None], url: str | None, stack: ExitStack
) -> _Listener | None:
    if url == NEVER:
        return None
    if engine.dialect.name == SQLITE:
        return _SqliteListener(engine, wake) if _is_file(engine) else None
    there = engines.create(url or engine.url.render_as_string(hide_password=False), poolclass=NullPool)
    stack.callback(there.dispose)
    if {one.dialect.driver for one in (engine, there)} != {"psycopg"} or engine.dialect.name != POSTGRESQL:
        logger.info("publishing does not wake this claim flow, which looks every second: that takes psycopg")
        return None
    return _PostgresListener(engine, table, wake, there, is_apart=url is not None)


def _is_file(engine: Engine) -> bool:
    """Whether there is a file that others can write to; of a database in memory, another connection sees another."""
    name = engine.url.database
    return bool(name) and ":memory:" not in str(name) and "mode=memory" not in str(name)
