"""The column `held_until`, by which a head of an ordering key that waits is told from one that was moved.

Additive: code that does not know it neither reads nor writes it, and what such code has settled holds its followers
as before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

WORKS_SINCE = "0003:0001"
INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")

# Whoever may work on leases by rights on single columns settles, and writes this one, too.
WORKERS = """
DO $claim_dispatch$
DECLARE
    worker record;
BEGIN
    FOR worker IN
        SELECT DISTINCT acl.privilege_type AS may,
               CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS name
        FROM pg_attribute, aclexplode(attacl) AS acl
        WHERE attrelid = CAST({actions} AS regclass) AND attname = 'lease_expires_at'
              AND acl.privilege_type IN ('SELECT', 'UPDATE')
    LOOP
        EXECUTE format('GRANT %%s (held_until) ON %%s TO %%s', worker.may, CAST({actions} AS regclass), worker.name);
    END LOOP;
END
$claim_dispatch$
"""


def upgrade() -> None:
    """Add the column, for those who may settle; write down whose code may go on."""
    name, schema = _names()
    comment = "Its end_at as last settled, where it has an ordering key: moved since, it holds nobody"
    op.add_column(name, sa.Column("held_until", INSTANT, comment=comment), schema=schema)
    if op.get_context().dialect.name != "sqlite":
        op.execute(sa.DDL(WORKERS.format(actions=_literal(name, schema))))
    versions = sa.table(context.config.attributes["version_table"], sa.column("works_since", sa.String), schema=schema)
    op.execute(sa.update(versions).values(works_since=WORKS_SINCE))


def downgrade() -> None:
    """Drop it; every head that was tried holds its followers then, moved or not."""
    name, schema = _names()
    op.drop_column(name, "held_until", schema=schema)
    versions = sa.table(context.config.attributes["version_table"], sa.column("works_since", sa.String), schema=schema)
    op.execute(sa.update(versions).values(works_since="0002:0001"))


def _names() -> tuple[str, str | None]:
    attributes = context.config.attributes
    return attributes["table"], attributes["schema"]


def _literal(name: str, schema: str | None) -> str:
    """The quoted name as a literal; names have no percent sign, see `schema`."""
    quote = op.get_context().dialect.identifier_preparer.quote_identifier
    relation = ".".join(quote(part) for part in (schema, name) if part is not None)
    return "'" + relation.replace("'", "''") + "'"
