"""The wake-up: a trigger on PostgreSQL's action table that tells claim flows that stay of what was published.

Optional, and all its DDL is here. It is a statement-level trigger, so plain SQL wakes as well, with at most one
notification for each INSERT, and PostgreSQL delivers one of those of a transaction. The payload is empty: what there
is to do is in the table.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import DDL, ColumnElement, Dialect, MetaData, Table, Text, func, literal_column

TRIGGER: Final = "claim_dispatch_wake_up"
PREFIX: Final = "claim_dispatch_"

HORIZON_SECONDS: Final = 5
"""How soon an inserted action must be due for its INSERT to wake: later ones are seen by a look that comes anyway."""


def channel_of(schema: ColumnElement[Any], name: ColumnElement[Any]) -> ColumnElement[str]:
    """The channel of the table *name* in *schema*: 47 bytes, whatever characters these have.

    Computed by the database, in the trigger as by who listens, from the names that the table has at that moment: one
    that was renamed or moved to another schema goes on being heard.
    """
    full_name = func.quote_ident(schema).concat(literal_column("'.'", Text)).concat(func.quote_ident(name))
    # sha256, because md5 is refused where FIPS rules.
    digest = func.encode(
        func.sha256(func.convert_to(full_name, literal_column("'UTF8'"))), literal_column("'hex'"), type_=Text
    )
    return literal_column(f"'{PREFIX}'", Text).concat(func.substr(digest, literal_column("1"), literal_column("32")))


def install_ddl(table: Table) -> list[str]:
    """The statements that install the wake-up of *table*, or bring it up to date; PostgreSQL 14 or later."""
    channel = channel_of(literal_column("TG_TABLE_SCHEMA", Text), literal_column("TG_TABLE_NAME", Text))
    written = channel.compile(dialect=_dialect(), compile_kwargs={"literal_binds": True})
    return _compiled(
        table,
        "CREATE OR REPLACE FUNCTION %(function)s() RETURNS trigger LANGUAGE plpgsql AS $wake_up$\n"
        "BEGIN\n"
        "    IF EXISTS (\n"
        "        SELECT FROM inserted WHERE status = 'pending'\n"
        f"        AND end_at <= clock_timestamp() + make_interval(secs => {HORIZON_SECONDS})\n"
        "    ) THEN\n"
        f"        PERFORM pg_notify({written}, '');\n"
        "    END IF;\n"
        "    RETURN NULL;\n"
        "END\n"
        "$wake_up$",
        "CREATE OR REPLACE TRIGGER %(trigger)s AFTER INSERT ON %(fullname)s REFERENCING NEW TABLE AS inserted\n"
        "FOR EACH STATEMENT EXECUTE FUNCTION %(function)s()",
    )


def remove_ddl(table: Table) -> list[str]:
    """The statements that remove the wake-up of *table*; they don't mind if there is none."""
    return _compiled(
        table, "DROP TRIGGER IF EXISTS %(trigger)s ON %(fullname)s", "DROP FUNCTION IF EXISTS %(function)s()"
    )


def _compiled(table: Table, *statements: str) -> list[str]:
    function = Table(f"{table.name}_wake_up", MetaData(schema=table.schema))
    names = {"function": _dialect().identifier_preparer.format_table(function), "trigger": TRIGGER}
    return [str(DDL(statement, context=names).against(table).compile(dialect=_dialect())) for statement in statements]


@cache
def _dialect() -> Dialect:
    # Late, since it takes a tenth of importing this package; see `dialects.json_type`.
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415

    return postgresql.dialect()
