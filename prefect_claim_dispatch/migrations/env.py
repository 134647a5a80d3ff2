"""Alembic's entry point: runs our revisions with what `migrations` put into the configuration.

It leaves logging alone, since the process belongs to an application.
"""

from __future__ import annotations

from alembic import context


def _run() -> None:
    attributes = context.config.attributes
    options = {
        "version_table": attributes["version_table"],
        "version_table_schema": attributes["schema"],
        "transactional_ddl": True,
    }
    if context.is_offline_mode():
        # With psycopg's own parameter style every percent sign in the text would be doubled.
        context.configure(
            dialect_name=attributes["dialect_name"],
            dialect_opts={"paramstyle": "named"},
            literal_binds=True,
            **options,
        )
    else:
        context.configure(connection=attributes["connection"], **options)
    with context.begin_transaction():
        context.run_migrations()


_run()
