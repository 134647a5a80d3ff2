"""Pause: which types nobody claims, written by operators and read with every survey."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Select, String, Table, Text, Update, UpdateBase, bindparam, delete, insert, select, true, update

from prefect_claim_dispatch.schema import pauses_table
from prefect_claim_dispatch.statements import NAME
from prefect_claim_dispatch.statements.operate import readable


@cache
def pause(table: Table) -> UpdateBase:
    """Insert a pause unless it is there; binds ``pattern, reason``; returns what was inserted. By the primary key."""
    pauses = pauses_table(table.name, table.schema)
    # SQLite wants a WHERE before it, or takes it for the condition of a join.
    new = select(bindparam("pattern", type_=String), bindparam("reason", type_=Text)).where(true())
    return (
        insert(pauses)
        .from_select(["type", "reason"], new.suffix_with("ON CONFLICT (type) DO NOTHING"), include_defaults=False)
        .returning(pauses.c.type)
        .execution_options(**{NAME: "pause"})
    )


@cache
def explain_pause(table: Table) -> Update:
    """Give the pause of ``pattern`` another ``new_reason``. By the primary key."""
    pauses = pauses_table(table.name, table.schema)
    return (
        update(pauses)
        .where(pauses.c.type == bindparam("pattern", type_=String))
        .values(reason=bindparam("new_reason", type_=Text))
        .execution_options(**{NAME: "explain_pause"})
    )


@cache
def resume(table: Table) -> UpdateBase:
    """Delete the pause of ``pattern``; returns what was deleted. By the primary key."""
    pauses = pauses_table(table.name, table.schema)
    return (
        delete(pauses)
        .where(pauses.c.type == bindparam("pattern"))
        .returning(pauses.c.type)
        .execution_options(**{NAME: "resume"})
    )


@cache
def paused(table: Table, dialect: str) -> Select[Any]:
    """All pauses in order of their patterns: ``type, reason, paused_at``. Reads the table of pauses, which is small."""
    pauses = pauses_table(table.name, table.schema)
    return (
        select(pauses.c.type, pauses.c.reason, readable(pauses.c.paused_at, dialect).label("paused_at"))
        .order_by(pauses.c.type)
        .execution_options(**{NAME: "paused"})
    )
