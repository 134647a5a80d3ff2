"""``claim-dispatch db``: migrate the action table, or have an administrator do it."""

from __future__ import annotations

import sys
from typing import Literal

from cyclopts import App

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.cli.options import Common, Flag
from prefect_claim_dispatch.cli.output import print_json, say
from prefect_claim_dispatch.engines import parsed_url

db = App(name="db", help="Create and migrate the action table.")


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(db)


@db.command
def upgrade(*, common: Common | None = None) -> None:
    """Create the table, or bring it to the newest revision. Safe to run by several at once, and again."""
    from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic, which --help does without

    common = common or Common()
    table = databases.table_named(common.table)
    revision = migrations.upgrade(common.url, table=table.name, schema=table.schema)
    if common.json:
        print_json(
            {
                "table": table.fullname,
                "upgraded": revision is not None,
                "revision": revision or migrations.newest_revision(),
            }
        )
    elif revision is None:
        say(f"{table.fullname} is at revision {migrations.newest_revision()} already")
    else:
        say(f"{table.fullname} is at revision {revision} now")


@db.command
def current(*, common: Common | None = None) -> None:
    """Say which revision the table is at, and which is the newest."""
    from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic, which --help does without

    common = common or Common()
    table = databases.table_named(common.table)
    revision = migrations.current(common.url, table=table.name, schema=table.schema)
    newest = migrations.newest_revision()
    if common.json:
        print_json({"table": table.fullname, "revision": revision, "newest": newest})
    else:
        say(f"{table.fullname}: {revision or 'not migrated'} (newest: {newest})")


@db.command
def sql(*, dialect: Literal["postgresql", "sqlite"] | None = None, common: Common | None = None) -> None:
    """Print the DDL for an administrator to read and run. Asks no database.

    Args:
        dialect: For which database; the one of the URL if not given.
        common: Database, table, and how to answer.
    """
    from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic, which --help does without

    common = common or Common()
    table = databases.table_named(common.table)
    name = dialect or parsed_url(common.url).get_backend_name()
    script = migrations.sql(name, table=table.name, schema=table.schema)
    if common.json:
        print_json({"table": table.fullname, "dialect": name, "sql": script})
    else:
        sys.stdout.write(script)


@db.command
def wake_up(*, remove: Flag = False, sql: Flag = False, common: Common | None = None) -> None:
    """Have every INSERT wake the claim flows that stay (PostgreSQL). Optional; safe to run again.

    Args:
        remove: Remove it instead.
        sql: Print the DDL for an administrator to read and run. Asks no database.
        common: Database, table, and how to answer.
    """
    from prefect_claim_dispatch import migrations  # noqa: PLC0415 - Alembic, which --help does without

    common = common or Common()
    table = databases.table_named(common.table)
    if sql:
        script = migrations.wake_up_sql(table=table.name, schema=table.schema, remove=remove)
        if common.json:
            print_json({"table": table.fullname, "sql": script})
        else:
            sys.stdout.write(script)
        return
    change = migrations.remove_wake_up if remove else migrations.install_wake_up
    has_changed = change(common.url, table=table.name, schema=table.schema)
    if common.json:
        print_json({"table": table.fullname, "installed": not remove, "changed": has_changed})
    elif remove:
        say(f"{table.fullname}: {'its wake-up is removed' if has_changed else 'there was no wake-up'}")
    else:
        say(f"{table.fullname}: an INSERT wakes claim flows that stay{'' if has_changed else ', as before'}")
