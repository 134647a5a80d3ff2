"""``claim-dispatch status``, ``list``, ``show``: look at the table without changing it."""

from __future__ import annotations

import json
from typing import Any

from cyclopts import App
from sqlalchemy import Engine

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.cli.options import Common, Selection, UsageError
from prefect_claim_dispatch.cli.output import print_json, print_table, printable, say, spoken, tell, written
from prefect_claim_dispatch.errors import SchemaMissingError
from prefect_claim_dispatch.rows import ActionRow, Counts, Pause

STATUSES = tuple(status.value for status in ActionStatus)
NUMBERS = (*STATUSES, "due", "expired leases")
COLUMNS = ("id", "type", "status", "end at (UTC)", "failures", "key", "last error")


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(status)
    app.command(list_, name="list")
    app.command(show)


def status(*, common: Common | None = None) -> None:
    """Count actions by type and status, with what is due, for how long, which leases are over, and what is paused."""
    common = common or Common()
    engine = common.checked_engine()
    counts, pauses = operations.counts(engine, table=common.table), _pauses(engine, common.table)
    if common.json:
        paused = [{**pause.as_dict(), "due": pause.waiting(counts)} for pause in pauses]
        print_json({**counts.as_dict(), "paused": paused})
    else:
        _print_counts(counts)
        _print_pauses(pauses, counts)


def list_(
    *,
    selection: Selection | None = None,
    limit: int = 100,
    common: Common | None = None,
) -> None:
    """List actions, newest first.

    Args:
        limit: Most actions to list, 100 unless given.
        common: Database, table, and how to answer.
        selection: Which actions.
    """
    common, selection = common or Common(), selection or Selection()
    if limit < 1:
        msg = f"--limit must be 1 or more, got {limit}"
        raise UsageError(msg)
    rows = operations.find(common.checked_engine(), limit=limit, table=common.table, **selection.where())
    if common.json:
        print_json([row.as_dict() for row in rows])
    else:
        print_rows(rows)
        if len(rows) == limit:
            tell(f"the newest {limit}; --limit shows more")


def show(id: int, /, *, common: Common | None = None) -> None:  # noqa: A002 - the column's name
    """Show one action with everything the table knows.

    Args:
        id: The action's id.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    row = operations.get(common.checked_engine(), id, table=common.table)
    if common.json:
        print_json(row.as_dict())
    else:
        _print_row(row)


def print_rows(rows: list[ActionRow]) -> None:
    """A table of actions, one on a line."""
    cells = [
        (
            str(row.id),
            row.type,
            row.status.value,
            written(row.end_at),
            row.fail_count,
            row.idempotency_key or "",
            row.last_error,
        )
        for row in rows
    ]
    if cells:
        print_table("", COLUMNS, cells, right="id,failures")
    else:
        say("no actions")


def _print_row(row: ActionRow) -> None:
    values = row.as_dict()
    width = max(map(len, values))
    for name, value in values.items():
        if name not in ("payload", "errors"):
            say(f"{name:<{width}}  {'' if value is None else value}")
    for name in ("payload", "errors"):
        say(f"{name}:")
        for line in _pretty(values[name]).splitlines():
            say(f"  {printable(line)}")


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _print_counts(counts: Counts) -> None:
    rows = [
        (
            kind.type,
            *(kind.statuses.get(name, 0) for name in STATUSES),
            kind.due,
            kind.expired_leases,
            spoken(kind.oldest_due_age),
        )
        for kind in counts.types
    ]
    total = (
        "all",
        *(counts.statuses[name] for name in STATUSES),
        counts.due,
        counts.expired_leases,
        spoken(counts.oldest_due_age),
    )
    print_table("", ("type", *NUMBERS, "due for"), [*rows, total], right=",".join((*NUMBERS, "due for")))


def _pauses(engine: Engine, table: str | None) -> list[Pause]:
    try:
        return operations.paused(engine, table=table)
    except SchemaMissingError:
        return []  # an application's own table, which has none beside it: nothing can be paused


def _print_pauses(pauses: list[Pause], counts: Counts) -> None:
    rows = [(pause.type, pause.waiting(counts), written(pause.paused_at), pause.reason or "") for pause in pauses]
    if rows:
        print_table("", ("paused", "due", "since (UTC)", "reason"), rows, right="due")
