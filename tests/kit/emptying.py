"""Databases as good as new: one in which a test changed nothing but rows is emptied, renamed, and given to the next.

A copy of the template takes PostgreSQL a tenth of a second and more, thousands of times; this takes a fifth of that.
What was done to anything else than rows (a trigger, a grant, statistics) is seen in the catalogs, and the database is
dropped then. Whoever still has its URL, a thread that was left behind for example, finds no database of that name.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Composable, Identifier

CATALOGS = (
    *("pg_attrdef", "pg_attribute", "pg_constraint", "pg_default_acl", "pg_description", "pg_event_trigger"),
    *("pg_extension", "pg_index", "pg_inherits", "pg_largeobject_metadata", "pg_namespace", "pg_policy", "pg_proc"),
    *("pg_publication", "pg_rewrite", "pg_sequence", "pg_statistic_ext", "pg_trigger", "pg_type"),
)
"""Whose rows nothing writes but a change of what is in the database, or of who may use it."""

FIRST_OF_USERS = 16_384
"""The least oid of what is not PostgreSQL's own."""

# TRUNCATE writes anew where a relation's rows are, and vacuum how many there are: this is the rest.
RELATIONS = SQL(
    "SELECT 'relations', count(*), hashtext(string_agg(concat_ws(' ', oid, relname, relnamespace, relowner, relkind,"
    " relrowsecurity, relforcerowsecurity, relreplident, relacl, reloptions), ',' ORDER BY oid))"
    " FROM pg_class WHERE oid >= {}"
).format(FIRST_OF_USERS)
ANALYZED = SQL("SELECT 'analyzed', count(*), 0 FROM pg_statistic WHERE starelid >= {}").format(FIRST_OF_USERS)
SET = SQL(
    "SELECT 'set', count(*), hashtext(string_agg(concat_ws(' ', datacl, setconfig), ',')) FROM pg_database AS d"
    " LEFT JOIN pg_db_role_setting AS s ON s.setdatabase = d.oid WHERE d.datname = current_database()"
)
TABLES = (
    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
)
TERMINATE = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"

State = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What every copy of a template looks like: its *empty* tables, those with *rows*, and the *state* of the rest."""

    empty: tuple[str, ...]
    rows: tuple[str, ...]
    state: State

    @classmethod
    def of(cls, copy: Connection) -> Pattern:
        """The pattern of a fresh *copy*."""
        tables = [name for (name,) in copy.execute(TABLES).fetchall()]
        rows = tuple(name for name in tables if copy.execute(f"SELECT EXISTS (SELECT 1 FROM {name})").fetchone()[0])  # type: ignore[index, arg-type]
        return cls(empty=tuple(name for name in tables if name not in rows), rows=rows, state=_state(copy, rows))

    def restore(self, copy: Connection) -> bool:
        """Empty *copy*; False, with nothing done, where more than rows of its tables was changed."""
        if _state(copy, self.rows) != self.state:
            return False
        if self.empty:
            copy.execute(f"TRUNCATE {', '.join(self.empty)} RESTART IDENTITY")  # type: ignore[arg-type]
        copy.execute("SELECT pg_stat_reset()")
        return True


def renamed(admin: Connection, name: str) -> str | None:
    """The new name of the database *name*, out of reach of all who used it.

    None where one of them is too quick, or has dropped it.
    """
    new = fresh_name()
    with suppress(psycopg.errors.ObjectInUse, psycopg.errors.InvalidCatalogName):
        admin.execute(TERMINATE, (name,))
        admin.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(name), Identifier(new)))
        return new
    return None


def fresh_name() -> str:
    """A name that no database has had."""
    return f"test_{uuid.uuid4().hex[:12]}"


def _state(copy: Connection, tables: Sequence[str]) -> State:
    """How many rows each has that must not change, and the youngest of them: one that is written anew is younger."""
    parts: list[Composable] = [
        SQL("SELECT {}, count(*), max(xmin::text::bigint) FROM {}").format(name, SQL(name))  # type: ignore[arg-type]
        for name in (*CATALOGS, *tables)
    ]
    return sorted(copy.execute(SQL(" UNION ALL ").join([*parts, RELATIONS, ANALYZED, SET])).fetchall())
