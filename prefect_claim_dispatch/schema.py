"""The table `action_logs`: columns, constraints, indexes, storage parameters.

`actions_table` is the one definition, and beside it `pauses_table`: which types are paused. The migrations in
:mod:`prefect_claim_dispatch.migrations` are proven equal to them by a test; an application that owns its migrations can
hand their metadata to its own Alembic instead.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    ColumnElement,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    case,
    event,
    false,
    func,
    literal_column,
    text,
    true,
)
from sqlalchemy import BigInteger as BigInt

from prefect_claim_dispatch.actions import MAX_KEY_LENGTH, MAX_TYPE_LENGTH, ActionStatus
from prefect_claim_dispatch.dialects import POSTGRESQL, SQLITE, Instant, identity_type, json_type, now
from prefect_claim_dispatch.errors import ConfigurationError

DEFAULT_TABLE: Final = "action_logs"
MAX_TABLE_LENGTH: Final = 40
INSTANTS: Final = (
    "end_at",
    "claimed_at",
    "lease_expires_at",
    "processed_at",
    "settled_at",
    "created_at",
    "updated_at",
)
LIVE: Final = (ActionStatus.PENDING, ActionStatus.CLAIMED)

ELSEWHERE: Final = "deployment:"
"""What `claimed_by` begins with where a deployment's run does the work: followed by the claim flow's run, until the
deployment's own run holds the claim; and that by `SERVER_MARK` and the identity of the Prefect server that makes it."""

SERVER_MARK: Final = "@"
SERVER_LENGTH: Final = 12
"""Characters of a server's identity. Of another server's runs this one knows nothing: not that they were deleted."""

# A claimed row is a moment's state, and ANALYZE nearly always sees none. Believing its statistics, the planner takes
# `status = 'claimed'` for one row and joins a batch to the leases by nested loop: measured 6,000 rows/s where this
# gives 39,000.
UNANALYZED: Final = ("status", "lease_expires_at")

# Dead index entries of settled rows stand in the way of later claims, so vacuum early, also on a big table with a
# small live part.
STORAGE: Final = {
    "fillfactor": "85",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}


def status_is(column: ColumnElement[Any], *statuses: ActionStatus) -> ColumnElement[bool]:
    """The status test with its values written out, never bound.

    A partial index is used only where the planner can see its predicate, and in a generic plan it can't see a
    parameter.
    """
    values = [literal_column(f"'{status.value}'", String) for status in statuses]
    return column == values[0] if len(values) == 1 else column.in_(values)


def is_elsewhere(claimed_by: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the claim is one of the deployment lane, whose rows no lease alone gives back; never NULL."""
    beginning = func.substr(claimed_by, literal_column("1"), literal_column(str(len(ELSEWHERE))))
    # As a CASE, which the planner takes for a toss-up. Of a comparison it thinks that one row in two hundred passes,
    # and sorts all claims to find the first few, where the index of leases has them in order.
    is_it = beginning == literal_column(f"'{ELSEWHERE}'", Text)
    return case((is_it, true()), else_=false())


def actions_table(name: str = DEFAULT_TABLE, schema: str | None = None) -> Table:
    """The action table called *name* in *schema* (None: the connection's search path), on metadata of its own.

    The table of pauses is on the same metadata, see `pauses_table`.

    Raises:
        ConfigurationError: the name is empty, has a NUL, or is too long for its indexes to have names.
    """
    return _actions_table(name, schema)


@cache
def _actions_table(name: str, schema: str | None) -> Table:
    _check_name("table", name, MAX_TABLE_LENGTH)
    if schema is not None:
        _check_name("schema", schema, 63)
    table = Table(
        name,
        MetaData(schema=schema),
        Column(
            "id",
            identity_type(),
            Identity(),
            primary_key=True,
            comment="Order of insertion, not of commit: never a cursor",
        ),
        Column("type", String(MAX_TYPE_LENGTH), nullable=False, comment="Routing key, dotted: email.welcome"),
        Column(
            "payload",
            json_type(),
            nullable=False,
            server_default=text("'{}'"),
            comment="JSON object; __rules and __meta are reserved",
        ),
        _instant("end_at", "Earliest eligible time; retry and snooze move it", default=True),
        Column(
            "priority",
            SmallInteger,
            nullable=False,
            server_default=text("0"),
            comment="Higher first among due actions",
        ),
        Column("idempotency_key", String(MAX_KEY_LENGTH), comment="Unique within a type"),
        Column(
            "ordering_key",
            String(MAX_KEY_LENGTH),
            comment="Actions that share one run one at a time, lowest id first",
        ),
        Column(
            "status",
            Text,
            nullable=False,
            server_default=text("'pending'"),
            comment="pending, claimed, processed, dead or cancelled",
        ),
        _instant("claimed_at", "Set by claim, null again when pending"),
        Column("claimed_by", Text, comment="Prefect flow run that holds the claim"),
        Column(
            "claim_count",
            BigInt,
            nullable=False,
            server_default=text("0"),
            comment="Fencing token: plus one at every claim, never falls",
        ),
        _instant("lease_expires_at", "Set exactly while claimed"),
        Column("run_id", Text, comment="Prefect run that does or did the work"),
        Column(
            "fail_count",
            Integer,
            nullable=False,
            server_default=text("0"),
            comment="Failed and crashed attempts",
        ),
        Column(
            "errors",
            json_type(),
            nullable=False,
            server_default=text("'[]'"),
            comment="Errors of the last attempts, bounded and redacted",
        ),
        _instant("processed_at", "Set only on success"),
        _instant("settled_at", "Set on any terminal status; retention looks at it"),
        _instant("created_at", "When it was published", default=True),
        _instant("updated_at", "When it last changed", default=True),
        # Last, where a migration adds it.
        _instant(
            "held_until", "Its end_at as last settled, where it has an ordering key: moved since, it holds nobody"
        ),
        comment="Actions to run later: published by applications, claimed and dispatched by prefect-claim-dispatch",
        sqlite_autoincrement=True,
    )
    for constraint in _checks(name):
        table.append_constraint(constraint)
    _add_indexes(table)
    for ddl in storage_ddl():
        event.listen(table, "after_create", ddl.execute_if(dialect=POSTGRESQL))
    _add_pauses(table)
    return table


def pauses_table(name: str = DEFAULT_TABLE, schema: str | None = None) -> Table:
    """The table beside the action table *name* that says which types are paused: ``<name>_paused``, on its metadata.

    Raises:
        ConfigurationError: as `actions_table`.
    """
    actions = actions_table(name, schema)
    paused = pauses_table_name(name)
    return actions.metadata.tables[paused if schema is None else f"{schema}.{paused}"]


def pauses_table_name(table: str) -> str:
    """The name of the table of pauses that belongs to *table*, in the same schema."""
    return f"{table}_paused"


def _add_pauses(actions: Table) -> None:
    name = pauses_table_name(actions.name)
    Table(
        name,
        actions.metadata,
        Column("type", String(MAX_TYPE_LENGTH), primary_key=True, comment="A type, or a pattern with *: email.*"),
        Column("reason", Text, comment="Why, for whoever looks"),
        _instant("paused_at", "Since when", default=True),
        CheckConstraint("length(type) > 0", name=f"ck_{name}_type"),
        comment="Types of actions that no claim flow claims until their row here is gone",
    )


def _check_name(what: str, name: str, limit: int) -> None:
    # A percent sign would have to be written differently in each kind of DDL.
    if not name or not name.isprintable() or "%" in name or len(name.encode()) > limit:
        msg = f"{what} name must be 1 to {limit} bytes of printable characters without %, got {name!r}"
        raise ConfigurationError(msg)


def _instant(name: str, comment: str, *, default: bool = False) -> Column[Any]:
    return Column(
        name,
        Instant(),
        nullable=not default,
        server_default=_default_now() if default else None,
        comment=comment,
    )


def _default_now() -> Any:
    return now()


def _checks(name: str) -> list[CheckConstraint]:
    conditions = {
        "status": "status IN ('pending', 'claimed', 'processed', 'dead', 'cancelled')",
        "type": "length(type) > 0",
        "leased": "(status = 'claimed') = (lease_expires_at IS NOT NULL)",
        "claimed": "(status <> 'claimed' OR claimed_at IS NOT NULL) AND (status <> 'pending' OR claimed_at IS NULL)",
        "processed": "(status = 'processed') = (processed_at IS NOT NULL)",
        "settled": "(status IN ('processed', 'dead', 'cancelled')) = (settled_at IS NOT NULL)",
        "counts": "fail_count >= 0 AND claim_count >= 0",
        # Instants that Python can't hold would make every claim that reads them fail.
        "instants": " AND ".join(
            f"{column} >= '0001-01-02 00:00:00+00' AND {column} < '9999-12-31 00:00:00+00'"
            for column in ("end_at", "created_at")
        ),
    }
    checks = [CheckConstraint(condition, name=f"ck_{name}_{key}") for key, condition in conditions.items()]
    text_checks = [
        CheckConstraint(_sortable(column), name=f"ck_{name}_{column}_text").ddl_if(dialect=SQLITE)
        for column in INSTANTS
    ]
    numbers = (
        " AND ".join(f"typeof({column}) = 'integer'" for column in ("priority", "claim_count", "fail_count"))
        + " AND typeof(type) = 'text'"
    )
    return [*checks, *text_checks, CheckConstraint(numbers, name=f"ck_{name}_types").ddl_if(dialect=SQLITE)]


def _sortable(column: str) -> str:
    """UTC text that sorts as instants do: no T, no offset; what SQLite would read differently is refused."""
    return (
        f"{column} IS NULL OR (typeof({column}) = 'text' "
        f"AND substr({column}, 1, 19) IS datetime(substr({column}, 1, 19), '+0 days') "
        f"AND (length({column}) = 19 OR (length({column}) BETWEEN 21 AND 26 AND substr({column}, 20, 1) = '.' "
        f"AND substr({column}, 21) NOT GLOB '*[^0-9]*')))"
    )


def _add_indexes(table: Table) -> None:
    name, c = table.name, table.c
    pending, claimed = status_is(c.status, ActionStatus.PENDING), status_is(c.status, ActionStatus.CLAIMED)
    # Within one (type, priority), due rows are a prefix of the index: neither strays of other types nor future rows
    # are stepped over.
    _partial(f"ix_{name}_due", pending, c.type, c.priority, c.end_at, c.id)
    _partial(f"ix_{name}_leases", claimed, c.lease_expires_at, c.id)
    _partial(f"uq_{name}_key", c.idempotency_key.is_not(None), c.type, c.idempotency_key, unique=True)
    keyed = c.ordering_key.is_not(None)
    _partial(f"ix_{name}_ordering", keyed & status_is(c.status, *LIVE), c.ordering_key, c.id)
    # The last word on "one at a time": two claimers that look at different moments can both find their row the first.
    _partial(f"uq_{name}_running", keyed & claimed, c.ordering_key, unique=True)
    _partial(f"ix_{name}_settled", c.settled_at.is_not(None), c.settled_at, c.id)


def _partial(name: str, predicate: ColumnElement[bool], *columns: Column[Any], unique: bool = False) -> None:
    Index(name, *columns, unique=unique, postgresql_where=predicate, sqlite_where=predicate)


def storage_ddl() -> list[DDL]:
    """What the table needs on PostgreSQL beyond columns: storage parameters, and columns without statistics."""
    parameters = ", ".join(f"{key} = {value}" for key, value in STORAGE.items())
    statistics = ", ".join(f"ALTER COLUMN {column} SET STATISTICS 0" for column in UNANALYZED)
    return [
        DDL(f"ALTER TABLE %(fullname)s SET ({parameters})"),
        DDL(f"ALTER TABLE %(fullname)s {statistics}"),
    ]
