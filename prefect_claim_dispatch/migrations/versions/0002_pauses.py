"""The table of paused types, and since which revision's code the tables can be worked with.

Additive: code that knows 0001 alone works on as before, and pauses nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

WORKS_SINCE = "0002:0001"
"""What this revision is, and the oldest one whose code can work with it. Without the first, a later revision that
forgets to say it would be taken for additive."""
INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")

# Whoever may read the actions may read what is paused: a claim flow that could not would claim nothing any more.
READERS = """
DO $claim_dispatch$
DECLARE
    reader text;
BEGIN
    FOR reader IN
        SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = CAST({actions} AS regclass) AND acl.privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON %%s TO %%s', CAST({paused} AS regclass), reader);
    END LOOP;
END
$claim_dispatch$
"""


def upgrade() -> None:
    """Create the table of pauses, readable for those who read the actions; write down whose code may go on."""
    name, schema = _names()
    is_sqlite = op.get_context().dialect.name == "sqlite"
    now = sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now'))" if is_sqlite else "now()")
    op.create_table(
        f"{name}_paused",
        sa.Column("type", sa.String(120), primary_key=True, comment="A type, or a pattern with *: email.*"),
        sa.Column("reason", sa.Text, comment="Why, for whoever looks"),
        sa.Column("paused_at", INSTANT, nullable=False, server_default=now, comment="Since when"),
        sa.CheckConstraint("length(type) > 0", name=f"ck_{name}_paused_type"),
        schema=schema,
        comment="Types of actions that no claim flow claims until their row here is gone",
    )
    if not is_sqlite:
        quoted = {"actions": _literal(name, schema), "paused": _literal(f"{name}_paused", schema)}
        op.execute(sa.DDL(READERS.format(**quoted)))
    versions = sa.table(context.config.attributes["version_table"], sa.column("works_since", sa.String), schema=schema)
    op.add_column(versions.name, sa.Column("works_since", sa.String(80)), schema=schema)
    op.execute(sa.update(versions).values(works_since=WORKS_SINCE))


def downgrade() -> None:
    """Drop both; what was paused is claimed again."""
    name, schema = _names()
    op.drop_column(context.config.attributes["version_table"], "works_since", schema=schema)
    op.drop_table(f"{name}_paused", schema=schema)


def _names() -> tuple[str, str | None]:
    attributes = context.config.attributes
    return attributes["table"], attributes["schema"]


def _literal(name: str, schema: str | None) -> str:
    """The quoted name as a literal; names have no percent sign, see `schema`."""
    quote = op.get_context().dialect.identifier_preparer.quote_identifier
    relation = ".".join(quote(part) for part in (schema, name) if part is not None)
    return "'" + relation.replace("'", "''") + "'"
