"""The action table as tests handle it.

Rows written and read directly, leases and instants moved by SQL, statements counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Float, Row, event, func, insert, literal, select, update

from prefect_claim_dispatch import claiming
from prefect_claim_dispatch.claiming import Lane, RawAction
from prefect_claim_dispatch.dialects import now, now_plus
from prefect_claim_dispatch.outcomes import Outcome
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_for
from prefect_claim_dispatch.schema import ELSEWHERE, actions_table
from prefect_claim_dispatch.statements import NAME

TABLE = actions_table()
LEASE = timedelta(minutes=5)
POLICY = RetryPolicy()


def seconds_from_now(seconds: float) -> Any:
    """An instant on the database's clock, as SQL; negative is in the past."""
    return now_plus(literal(seconds, Float))


def add(engine: Engine, type_: str = "a", *, due_in: float = -60.0, **values: Any) -> int:
    """Insert one pending action, eligible *due_in* seconds from now by the database's clock; returns its id."""
    return add_many(engine, [{"type": type_, "due_in": due_in, **values}])[0]


def add_many(engine: Engine, actions: Iterable[dict[str, Any]]) -> list[int]:
    """Insert actions in one transaction, in order.

    As `add`, each is of type ``a`` and due for a minute unless it says otherwise.
    """
    with engine.begin() as connection:
        return [connection.execute(_insertion(dict(action))).scalar_one() for action in actions]


def _insertion(action: dict[str, Any]) -> Any:
    end_at = seconds_from_now(action.pop("due_in", -60.0))
    return insert(TABLE).values({"type": "a", "end_at": end_at, **action}).returning(TABLE.c.id)


def row(engine: Engine, id_: int) -> Row[Any]:
    """All columns of one action, and the database's ``now``."""
    with engine.connect() as connection:
        return connection.execute(select(TABLE, now().label("now")).where(TABLE.c.id == id_)).one()


def columns(engine: Engine, id_: int) -> dict[str, Any]:
    """All columns of one action as a mapping, to compare before and after."""
    with engine.connect() as connection:
        return dict(connection.execute(select(TABLE).where(TABLE.c.id == id_)).one()._mapping)


def by_status(engine: Engine) -> dict[str, int]:
    """How many actions stand in each status that occurs."""
    with engine.connect() as connection:
        counted = select(TABLE.c.status, func.count()).group_by(TABLE.c.status)
        return {status: number for status, number in connection.execute(counted)}  # noqa: C416 - dict() takes no rows


def change(engine: Engine, *ids: int, **values: Any) -> None:
    """Set columns of actions by plain SQL, past every fence."""
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id.in_(ids)).values(values))


def expire_leases(engine: Engine, *ids: int) -> None:
    """Let the leases of these actions have ended a moment ago, by the database's clock."""
    change(engine, *ids, lease_expires_at=seconds_from_now(-1))


def make_due(engine: Engine, *ids: int) -> None:
    """Let these actions be due, whatever back-off they wait for."""
    change(engine, *ids, end_at=seconds_from_now(-1))


def claim_due(
    engine: Engine,
    *types: str,
    limit: int = 1_000,
    lease: timedelta = LEASE,
    claimed_by: str = "flow-run",
    until: datetime | None = None,
    may_begin: bool | None = None,
    kept_waiting: Callable[[list[RawAction]], Collection[RawAction]] | None = None,
    max_running: int | None = None,
) -> list[RawAction]:
    """Survey, then claim what is due of *types* (all, unless given), as one round of the loop does.

    To begin at once unless *may_begin* says otherwise, or a deployment's run is to be created first.
    """
    lanes = [lane for lane in claiming.survey(engine, TABLE).due(until) if not types or lane.type in types]
    begins = not claimed_by.startswith(ELSEWHERE) if may_begin is None else may_begin
    options: dict[str, Any] = {"until": until, "may_begin": begins, "max_running": max_running}
    options["kept_waiting"] = kept_waiting
    return claiming.claim(engine, TABLE, lanes, limit=limit, lease=lease, claimed_by=claimed_by, **options)


def claim_blindly(engine: Engine, *lanes: tuple[str, int], limit: int = 1_000) -> list[RawAction]:
    """Claim from (type, priority) pairs without asking first whether anything is due there."""
    some_time = datetime.fromisoformat("2020-01-01T00:00:00+00:00")
    named = [Lane(type=type_, priority=priority, end_at=some_time) for type_, priority in lanes]
    return claiming.claim(engine, TABLE, named, limit=limit, lease=LEASE, claimed_by="flow-run")


def verdicts(outcome: Outcome, raws: Sequence[RawAction], policy: RetryPolicy = POLICY) -> list[Settlement]:
    """The settlement of *outcome* on each of *raws*."""
    return [settlement_for(outcome, raw, policy) for raw in raws]


@contextmanager
def statements_of(engine: Engine) -> Iterator[list[str]]:
    """The statements sent meanwhile by *engine*, by the package's names for them; SQL text where they have none.

    BEGIN is left out.
    """
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(context.execution_options.get(NAME, statement) if context else statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)
