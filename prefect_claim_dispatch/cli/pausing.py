"""``claim-dispatch pause``, ``resume``: have a type of actions not claimed for a while."""

from __future__ import annotations

from cyclopts import App

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.cli.options import Common
from prefect_claim_dispatch.cli.output import print_json, say, tell
from prefect_claim_dispatch.patterns import matching


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(pause)
    app.command(resume)


def pause(type: str, /, *, reason: str | None = None, common: Common | None = None) -> None:  # noqa: A002 - the column
    """Have no claim flow claim actions of a type until it is resumed. What is claimed goes on.

    Args:
        type: The type, or a pattern: email.*.
        reason: Why, for whoever looks at the status.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    is_new = operations.pause(common.checked_engine(), type, reason=reason, table=common.table)
    if common.json:
        print_json({"type": type, "paused": is_new})
    else:
        say(f"{type} is paused" if is_new else f"{type} was paused already")


def resume(type: str, /, *, common: Common | None = None) -> int:  # noqa: A002 - the column's name
    """Have actions of a type claimed again.

    Args:
        type: The type or pattern, as it was paused.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    engine = common.checked_engine()
    is_resumed = operations.resume(engine, type, table=common.table)
    left = matching([pause.type for pause in operations.paused(engine, table=common.table)], type)
    if common.json:
        print_json({"type": type, "resumed": is_resumed, "still_paused_by": list(left)})
    else:
        say(f"{type} is resumed" if is_resumed else f"{type} was not paused")
    if left:
        tell(f"{', '.join(left)} is paused, and means {type} too")
    return 0 if is_resumed else 1
