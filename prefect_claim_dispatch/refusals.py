"""Refusals: what a row makes the database refuse, and what becomes of that row so that no other pays for it.

A statement over many rows is refused as a whole where one of them does not fit: a value at its column's limit, a CHECK
or a trigger of the application's. Then it is done again row by row, and the row that is refused by itself goes dead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.dialects import bind_rows
from prefect_claim_dispatch.engines import sqlstate
from prefect_claim_dispatch.errors import DatabaseError
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.statements.bury import bury as bury_statement

logger = logging.getLogger(__name__)

One = TypeVar("One")
Answer = TypeVar("Answer")

OF_A_ROW: Final = ("22", "23", "54", "P0")
"""Classes of SQLSTATE: data exceptions, constraints, a program's limits, what triggers raise."""
UNIQUE: Final = "23505"
SQLITE_UNIQUE: Final = (1555, 2067)  # SQLITE_CONSTRAINT_PRIMARYKEY and _UNIQUE
REFUSED: Final = "RefusedByDatabase"

# What a value that is no value of its column raises before it is sent.
UNSENDABLE: Final = (ValueError, TypeError, OverflowError, RecursionError)


def is_of_a_row(error: Exception) -> bool:
    """Whether *error* tells of a value in some row, and not of the database, the statement or another transaction."""
    if isinstance(error, UNSENDABLE):
        return True
    cause = error.__cause__ if isinstance(error, DatabaseError) else error
    if not isinstance(cause, DBAPIError) or is_taken(cause):
        return False
    state = sqlstate(cause)
    return isinstance(cause, DataError | IntegrityError) if state is None else state[:2] in OF_A_ROW


def is_taken(error: BaseException | None) -> bool:
    """Whether a unique index has refused it: somebody else was there first."""
    if not isinstance(error, IntegrityError):
        return False
    state = sqlstate(error)
    return state == UNIQUE if state is not None else getattr(error.orig, "sqlite_errorcode", 0) in SQLITE_UNIQUE


def each(
    engine: Engine, rows: Iterable[One], write: Callable[[Connection, One], Answer]
) -> tuple[list[Answer], list[tuple[One, Exception]]]:
    """What *write* answers for each of *rows*, in a transaction of its own; and those that were refused, with why."""
    answers: list[Answer] = []
    refused: list[tuple[One, Exception]] = []
    for row in rows:
        try:
            answers.append(databases.repeated(engine, lambda connection, row=row: write(connection, row)))
        except (DatabaseError, *UNSENDABLE) as error:
            if not is_of_a_row(error):
                raise
            refused.append((row, error))
    return answers, refused


def reason(error: Exception) -> str:
    """What the database said, for a person."""
    return redacted(str(error), 500)


def bury(
    bind: Engine | Connection, table: Table, id_: int, claim_count: int, errors: Iterable[Mapping[str, Any]]
) -> bool:
    """Make the row dead if it still stands at *claim_count*; False where it does not, or that is refused as well."""
    dialect = bind.dialect.name
    columns = {"id": [id_], "claim_count": [claim_count], "errors": [json.dumps(list(errors))]}
    parameters = bind_rows(dialect, "buried", columns)

    def write(connection: Connection) -> bool:
        return connection.execute(bury_statement(table, dialect), parameters).scalar_one_or_none() is not None

    try:
        is_dead = databases.repeated(bind, write)
    except DatabaseError as error:
        if not is_of_a_row(error):
            raise
        logger.error("action #%s can't be made dead, which is refused as well: %s", id_, reason(error))  # noqa: TRY400 - in words
        return False
    if is_dead:
        logger.error("action #%s is dead: the database refused what was to be written", id_)
    return is_dead
