"""The action table, its constraints, indexes and storage parameters.

History, so everything is spelled out and nothing is taken from `schema`: what this revision made must not change when
the schema does.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
OBJECT = sa.JSON().with_variant(JSONB(), "postgresql")
INSTANTS = (
    "end_at",
    "claimed_at",
    "lease_expires_at",
    "processed_at",
    "settled_at",
    "created_at",
    "updated_at",
)


def upgrade() -> None:
    """Create the table."""
    name, schema = _names()
    is_sqlite = op.get_context().dialect.name == "sqlite"
    table = op.create_table(
        name,
        *_columns(sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now'))" if is_sqlite else "now()")),
        *_checks(name),
        *(_sqlite_checks(name) if is_sqlite else ()),
        schema=schema,
        comment="Actions to run later: published by applications, claimed and dispatched by prefect-claim-dispatch",
        sqlite_autoincrement=True,
    )
    _create_indexes(name, schema)
    if not is_sqlite:
        for statement in _storage():
            op.execute(statement.against(table))


def downgrade() -> None:
    """Drop the table with everything in it."""
    name, schema = _names()
    op.drop_table(name, schema=schema)


def _names() -> tuple[str, str | None]:
    attributes = context.config.attributes
    return attributes["table"], attributes["schema"]


def _columns(now: sa.TextClause) -> list[sa.Column[Any]]:
    return [
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            primary_key=True,
            comment="Order of insertion, not of commit: never a cursor",
        ),
        _required("type", sa.String(120), None, "Routing key, dotted: email.welcome"),
        _required("payload", OBJECT, "'{}'", "JSON object; __rules and __meta are reserved"),
        _required("end_at", INSTANT, now, "Earliest eligible time; retry and snooze move it"),
        _required("priority", sa.SmallInteger(), "0", "Higher first among due actions"),
        _optional("idempotency_key", sa.String(255), "Unique within a type"),
        _optional("ordering_key", sa.String(255), "Actions that share one run one at a time, lowest id first"),
        _required("status", sa.Text(), "'pending'", "pending, claimed, processed, dead or cancelled"),
        _optional("claimed_at", INSTANT, "Set by claim, null again when pending"),
        _optional("claimed_by", sa.Text(), "Prefect flow run that holds the claim"),
        _required("claim_count", sa.BigInteger(), "0", "Fencing token: plus one at every claim, never falls"),
        _optional("lease_expires_at", INSTANT, "Set exactly while claimed"),
        _optional("run_id", sa.Text(), "Prefect run that does or did the work"),
        _required("fail_count", sa.Integer(), "0", "Failed and crashed attempts"),
        _required("errors", OBJECT, "'[]'", "Errors of the last attempts, bounded and redacted"),
        _optional("processed_at", INSTANT, "Set only on success"),
        _optional("settled_at", INSTANT, "Set on any terminal status; retention looks at it"),
        _required("created_at", INSTANT, now, "When it was published"),
        _required("updated_at", INSTANT, now, "When it last changed"),
    ]


def _required(
    name: str, type_: sa.types.TypeEngine[Any], default: str | sa.TextClause | None, comment: str
) -> sa.Column[Any]:
    default = sa.text(default) if isinstance(default, str) else default
    return sa.Column(name, type_, nullable=False, server_default=default, comment=comment)


def _optional(name: str, type_: sa.types.TypeEngine[Any], comment: str) -> sa.Column[Any]:
    return sa.Column(name, type_, comment=comment)


def _checks(name: str) -> list[sa.CheckConstraint]:
    conditions = {
        "status": "status IN ('pending', 'claimed', 'processed', 'dead', 'cancelled')",
        "type": "length(type) > 0",
        "leased": "(status = 'claimed') = (lease_expires_at IS NOT NULL)",
        "claimed": "(status <> 'claimed' OR claimed_at IS NOT NULL) AND (status <> 'pending' OR claimed_at IS NULL)",
        "processed": "(status = 'processed') = (processed_at IS NOT NULL)",
        "settled": "(status IN ('processed', 'dead', 'cancelled')) = (settled_at IS NOT NULL)",
        "counts": "fail_count >= 0 AND claim_count >= 0",
        "instants": (
            "end_at >= '0001-01-02 00:00:00+00' AND end_at < '9999-12-31 00:00:00+00' "
            "AND created_at >= '0001-01-02 00:00:00+00' AND created_at < '9999-12-31 00:00:00+00'"
        ),
    }
    return [sa.CheckConstraint(condition, name=f"ck_{name}_{key}") for key, condition in conditions.items()]


def _sqlite_checks(name: str) -> list[sa.CheckConstraint]:
    sortable = (
        "{0} IS NULL OR (typeof({0}) = 'text' "
        "AND substr({0}, 1, 19) IS datetime(substr({0}, 1, 19), '+0 days') "
        "AND (length({0}) = 19 OR (length({0}) BETWEEN 21 AND 26 AND substr({0}, 20, 1) = '.' "
        "AND substr({0}, 21) NOT GLOB '*[^0-9]*')))"
    )
    numbers = (
        "typeof(priority) = 'integer' AND typeof(claim_count) = 'integer' AND typeof(fail_count) = 'integer' "
        "AND typeof(type) = 'text'"
    )
    return [
        *(sa.CheckConstraint(sortable.format(column), name=f"ck_{name}_{column}_text") for column in INSTANTS),
        sa.CheckConstraint(numbers, name=f"ck_{name}_types"),
    ]


def _create_indexes(name: str, schema: str | None) -> None:
    pending, claimed = "status = 'pending'", "status = 'claimed'"
    keyed, live = "ordering_key IS NOT NULL", "status IN ('pending', 'claimed')"
    indexes = [
        (f"ix_{name}_due", ["type", "priority", "end_at", "id"], pending, False),
        (f"ix_{name}_leases", ["lease_expires_at", "id"], claimed, False),
        (f"uq_{name}_key", ["type", "idempotency_key"], "idempotency_key IS NOT NULL", True),
        (f"ix_{name}_ordering", ["ordering_key", "id"], f"{keyed} AND {live}", False),
        (f"uq_{name}_running", ["ordering_key"], f"{keyed} AND {claimed}", True),
        (f"ix_{name}_settled", ["settled_at", "id"], "settled_at IS NOT NULL", False),
    ]
    for index, columns, predicate, unique in indexes:
        where = sa.text(predicate)
        op.create_index(index, name, columns, unique=unique, schema=schema, postgresql_where=where, sqlite_where=where)


def _storage() -> list[sa.DDL]:
    # Dead entries of settled rows stand in the way of claims; statistics of a moment's state mislead the planner.
    return [
        sa.DDL(
            "ALTER TABLE %(fullname)s SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, "
            "autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0.05, "
            "autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)"
        ),
        sa.DDL(
            "ALTER TABLE %(fullname)s "
            "ALTER COLUMN status SET STATISTICS 0, ALTER COLUMN lease_expires_at SET STATISTICS 0"
        ),
    ]
