"""PostgreSQL's catalogs as tables of Core, and how the action table is found in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Table, func
from sqlalchemy import table as named_table


def catalog(name: str, /, **columns: Any) -> Any:
    """The catalog or view called *name*, with those of its columns that are wanted."""
    return named_table(name, *(Column(key, type_) for key, type_ in columns.items()))


def relation(table: Table) -> ColumnElement[Any]:
    """The table's oid, found as its name in a statement is; NULL where there is none."""
    name = func.quote_ident(table.name)
    return func.to_regclass(name if table.schema is None else func.concat(func.quote_ident(table.schema), ".", name))
