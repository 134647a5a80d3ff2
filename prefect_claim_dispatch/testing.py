"""For the tests of an application: look at what it published, run what is due, and move time.

Publishing and looking need no Prefect. `drain` calls processors, so the extra ``prefect`` must be installed for it;
but no server, no network and no thread. Everything works inside a transaction of the test's own that is rolled back
at the end, on PostgreSQL and on SQLite.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from prefect_claim_dispatch import clocks, operations
from prefect_claim_dispatch.databases import Bind
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    InvalidInstantError,
    MissingExtraError,
    UnexpectedActionsError,
    comes_with_prefect,
)
from prefect_claim_dispatch.expectations import (
    Expectation,
    PublishedAction,
    Wanted,
    WantedOfType,
    explanation,
    published_action,
)
from prefect_claim_dispatch.moments import moment
from prefect_claim_dispatch.reports import DispatchReport

if TYPE_CHECKING:
    from prefect_claim_dispatch.processors import Registry

__all__ = ["PublishedAction", "Wanted", "assert_published", "at", "drain", "published"]


def published(bind: Bind = None, *, table: str | None = None, **wanted: Unpack[WantedOfType]) -> list[PublishedAction]:
    """The actions that fit all filters, whatever their status, in order of their ids; all actions without a filter.

    Given a `Connection` or `Session`, what it published in its open transaction is there; given an engine or URL, only
    what was committed. Reads the whole table, or all of one ``type``: it is for tests. The filters are those of
    `Wanted`, and ``type``: ``published(session, type="email.welcome", payload__contains={"to": "a@example.org"})``.

    Raises:
        ConfigurationError: a filter that does not exist, a value that no action can have, a bind that is none.
        InvalidInstantError: an instant that is naive or out of range.
        DatabaseError: the transaction of our own failed. In the caller's, the driver's error passes unchanged.
    """
    expectation = Expectation(wanted)
    actions = _all(bind, table, type_=wanted.get("type"))
    return [action for action in actions if not expectation.differences(action)]


def assert_published(
    bind: Bind,
    type: str,  # noqa: A002 - the column's name
    *,
    count: int | None = None,
    table: str | None = None,
    **wanted: Unpack[Wanted],
) -> list[PublishedAction]:
    """Fail unless *count* actions of *type* fit the filters (None: at least one; 0: none); returns those that do.

    Sees what `published` sees, actions of every status included.

    Raises:
        UnexpectedActionsError: there are fewer or more; an `AssertionError` whose message, of at most 20 lines, shows
            what is there instead and in what it differs.
        ConfigurationError: as `published`, or a *count* that is no number of actions.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    if count is not None and (not _is_integer(count) or count < 0):
        msg = f"count must be an integer from 0, or None for at least one, got {count!r}"
        raise ConfigurationError(msg)
    expectation = Expectation({"type": type, **wanted})
    fitting = [action for action in _all(bind, table, type_=type) if not expectation.differences(action)]
    if len(fitting) == count or (count is None and fitting):
        return fitting
    raise UnexpectedActionsError(explanation(expectation, count, _all(bind, table)))


def at(instant: datetime) -> AbstractContextManager[datetime]:
    """Move time: inside ``with testing.at(instant):`` the clock stands at *instant*.

    Every statement of this package then takes *instant* for the database's now, on both databases and in transactions
    that are open already: what is due, what `drain`, a claim flow in this process and the operations do, from when a
    ``delay``, a snooze, a back-off and a lease are counted, and what rules are told. Rows are not touched, so an action
    still has the `end_at` that it was published with, and ``at(action.end_at)`` is when it becomes due. Rounded up to a
    millisecond; yields the instant. May be nested.

    It holds for this process, all its threads included, and for nothing else: not for other processes, for
    `created_at`, which is the table's own default, for SQL of your own, or for `datetime.now` in a processor. Time
    does not pass in it: what snoozes for a minute is due in an ``at`` of a minute later.

    Raises:
        InvalidInstantError: *instant* is not an aware datetime between the years 1 and 9999.
    """
    if not isinstance(instant, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = instant.__class__.__name__
        msg = f"at() takes an aware datetime, got {kind}; write at(datetime.now(UTC) + timedelta(minutes=5))"
        raise InvalidInstantError(msg)
    checked = moment(instant).end_at
    assert checked is not None  # noqa: S101 - of a datetime
    return clocks.stopped(checked)


def drain(
    bind: Bind = None,
    processors: str | Iterable[str] | Registry | None = None,
    *,
    limit: int | None = None,
    reraise: bool = False,
    table: str | None = None,
) -> DispatchReport:
    """Run what is due, one action after another, until nothing is: what the claim flow does, here and without a run.

    The same statements claim, rescue and settle; the same guard decodes, asks the rules and validates; the same policy
    decides what a failure comes to. A processor is called as a plain function, an async one in an event loop of its
    own; one that takes ``payloads`` and ``actions`` with up to its `rows_per_run` of them. So what belongs to a Prefect
    run does not happen: retries inside an attempt, time limits, hooks; a row's `run_id` says ``drain``, and
    ``get_run_logger()`` logs nothing.
    A processor that itself calls a task, a flow or Prefect's API needs a server.

    What is due is decided by the database's clock, or `at`. On PostgreSQL that clock stands still in a transaction:
    what a test publishes in one with ``end_at=datetime.now(UTC)`` is not due in it, without an `at`.

    With an engine, a URL or None (settings) each claim and each verdict is committed, and no transaction is open while
    a processor runs. A `Connection` or `Session` is joined and never committed, so that the test may roll it back;
    processors then run inside that transaction, must write through it, and must not break it: let them use a savepoint.

    Args:
        bind: where the actions are.
        processors: modules to import, one or several, as for the claim flow, None for the settings'; or a `Registry`
            of the test's own, and nothing that is registered elsewhere.
        limit: stop after so many claims. None: when nothing is due, and with an error after a thousand.
        reraise: when a processor raises, settle that failure and then raise its exception, instead of going on.
        table: name of the action table, ``schema.table`` included.

    Returns:
        The counts, as the claim flow has them; why an action failed is in ``published(...)[0].errors``, and logged.

    Raises:
        EndlessDrainError: a thousand claims, and still something is due.
        RegistrationError: a module that can't be imported, or a processor that can't be called.
        ConfigurationError: arguments that make no sense, or an async processor while an event loop runs in this thread.
        MissingExtraError: Prefect is not installed.
        DatabaseError: the transaction of our own failed. In the caller's, the driver's error passes unchanged.
    """
    if limit is not None and (not _is_integer(limit) or limit < 1):
        msg = f"limit must be 1 or more, or None for all that is due, got {limit!r}"
        raise ConfigurationError(msg)
    try:
        from prefect_claim_dispatch.dispatching.draining import Drain, registry_of  # noqa: PLC0415 - imports Prefect
    except ModuleNotFoundError as error:
        if not comes_with_prefect(error):
            raise
        what = "testing.drain"
        raise MissingExtraError(what, "prefect") from error
    return Drain(bind, table, registry_of(processors), limit=limit, reraise=reraise).run()


def _all(bind: Bind, table: str | None, *, type_: str | None = None) -> list[PublishedAction]:
    rows = operations.find(bind, limit=None, table=table, type=type_)
    return [published_action(row) for row in reversed(rows)]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
