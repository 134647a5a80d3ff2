"""Through pgbouncer in transaction mode, where each transaction may have another server connection.

``make test-pgbouncer`` sends the whole conformance suite this way; here is what every run sees where pgbouncer is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import engines, publish
from prefect_claim_dispatch.errors import ConfigurationError
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import TABLE, add_many, by_status, claim_due, verdicts

ROUNDS = 12  # psycopg prepares what it has sent five times


@pytest.fixture
def make(pgbouncer_url: str) -> Iterator[Callable[[str], Engine]]:
    """Make an engine to the database behind pgbouncer, with what is to stand in its URL after the question mark."""
    with ExitStack() as made:

        def engine(options: str = "") -> Engine:
            created = engines.create(pgbouncer_url + options)
            made.callback(created.dispose)
            return created

        yield engine


def threshold(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.connection.driver_connection.prepare_threshold  # type: ignore[union-attr]


def test_two_claimers_share_server_connections(make: Callable[[str], Engine]) -> None:
    """Publish, claim and settle in turn, often enough that psycopg would have prepared each statement."""
    one, other = make(""), make("")
    add_many(one, [{} for _ in range(4 * ROUNDS)])

    def live(engine: Engine) -> None:
        for number in range(ROUNDS):
            publish(engine, "b", {"n": number})
            settle(engine, TABLE, verdicts(Processed(), claim_due(engine, "a", limit=2)))

    threads = [threading.Thread(target=live, args=(engine,)) for engine in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert by_status(one) == {"processed": 4 * ROUNDS, "pending": 2 * ROUNDS}


def test_pooler_is_noticed_and_nothing_is_prepared(make: Callable[[str], Engine], postgres_url: str) -> None:
    """Nobody has to know: a pooler's process id is not the server's. Without a pooler, psycopg prepares as ever."""
    direct = engines.create(postgres_url)

    assert threshold(make("")) is None
    if "host=" in postgres_url:  # where the run itself does not go through pgbouncer
        assert threshold(direct) == 5
    direct.dispose()


@pytest.mark.parametrize(("asked", "expected"), [("none", None), ("0", None), ("7", 7)])
def test_url_decides_what_is_prepared(make: Callable[[str], Engine], asked: str, expected: int | None) -> None:
    """For a pooler that keeps its clients' prepared statements, or one that can't be noticed."""
    assert threshold(make(f"?prepare_threshold={asked}")) == expected


def test_threshold_that_is_no_number_is_refused(make: Callable[[str], Engine]) -> None:
    """In our words, before anything is sent."""
    with pytest.raises(ConfigurationError, match="prepare_threshold must be a number or none, got 'often'"):
        make("?prepare_threshold=often")


def test_prepared_statements_do_break_here(make: Callable[[str], Engine]) -> None:
    """That it matters here, so that the tests above can fail: without our care, the statements of two clients meet."""
    one, other = make("?prepare_threshold=1"), make("?prepare_threshold=1")

    def race() -> None:
        for number in range(10 * ROUNDS):
            for engine in (one, other):
                with engine.begin() as connection:  # psycopg forgets what it has prepared when it rolls back
                    assert connection.scalar(select(number + TABLE.c.id).limit(1)) is None

    with pytest.raises(DBAPIError, match="prepared statement"):
        race()
