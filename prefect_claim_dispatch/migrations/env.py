"""Alembic's entry point: runs our revisions with what `migrations` put into the configuration.

It leaves logging alone, since the process belongs to an application.
"""

from __future__ import annotations

from alembic import context


def _run() -> None:
    attributes = context.config.attributes
    name, schema = attributes["version_table"], attributes["schema"]
    if context.is_offline_mode():
        # With psycopg's own parameter style every percent sign in the text would be doubled.
        context.configure(
            dialect_name=attributes["dialect_name"],
            dialect_opts={"paramstyle": "named"},
            literal_binds=True,
            version_table=name,
            version_table_schema=schema,
            transactional_ddl=True,
        )
    else:
        context.configure(
            connection=attributes["connection"],
            version_table=name,
            version_table_schema=schema,
            transactional_ddl=True,
        )
    with context.begin_transaction():
        context.run_migrations()


_run()
