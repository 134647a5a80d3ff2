"""``claim-dispatch run`` and ``demo``: the claim flow, here and now."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from cyclopts import App

from prefect_claim_dispatch.cli.options import Common, Duration, Flag, Instant, UsageError, find_modules_here
from prefect_claim_dispatch.cli.output import output_to_stderr, print_json, print_table, say
from prefect_claim_dispatch.dispatching.options import MAX_LEASE, MIN_LEASE
from prefect_claim_dispatch.errors import MissingExtraError, comes_with_prefect
from prefect_claim_dispatch.reports import DispatchReport

NOW = timedelta(0)
VERDICTS = ("processed", "retrying", "dead", "snoozed", "cancelled", "released")


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(run)
    app.command(demo)


def run(
    *,
    processors: tuple[str, ...] | None = None,
    limit: int | None = None,
    until: Instant | None = None,
    lease: Duration | None = None,
    stay: Duration = NOW,
    common: Common | None = None,
) -> None:
    """Run one claim flow and print its report. Failed actions are in the report, not in the exit code.

    Args:
        processors: A module whose processors to register; may be given more than once.
        limit: Most actions that one claim takes.
        until: Claim only what is due by this instant: 2026-01-31T12:00:00Z.
        lease: How long a claim lasts unless renewed: 5m.
        stay: How long to wait for the next due action when nothing is due: 30s.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    _check_usage(limit, lease)
    find_modules_here()
    with needs_prefect("claim-dispatch run"):
        from prefect_claim_dispatch.flow import run_claim_flow  # noqa: PLC0415 - Prefect, if it is installed
    with output_to_stderr(), ended_by_signal():
        report = run_claim_flow(
            processors=processors or None,
            limit=limit,
            until=until,
            lease=lease,
            stay=stay,
            database_url=common.database_url,
            table=common.table,
        )
    if common.json:
        print_json(report.as_dict())
    else:
        _print_report(report)


def _check_usage(limit: int | None, lease: timedelta | None) -> None:
    """Refuse what makes no sense before anything is asked, imported or started for it."""
    if limit is not None and limit < 1:
        msg = f"--limit must be 1 or more, got {limit}"
        raise UsageError(msg)
    if lease is not None and not MIN_LEASE <= lease <= MAX_LEASE:
        msg = f"--lease must be from {MIN_LEASE.seconds}s to {MAX_LEASE.days}d, got {lease}"
        raise UsageError(msg)


def demo(*, directory: Path | None = None, keep: Flag = False, json: Flag = False, debug: Flag = False) -> int:
    """Run the whole thing on an embedded default: something worth looking at.

    Args:
        directory: Where its database, logs and Prefect home go; a new temporary one if not given.
        keep: Leave the Prefect server running until Enter is pressed.
        json: One JSON document of what it did on standard output, and what it shows on standard error.
        debug: Show the traceback of an error.
    """
    del debug  # `cli.run` looks at it
    if find_spec("prefect") is None:  # the demo starts Prefect's server, and imports nothing of it itself
        what = "claim-dispatch demo"
        raise MissingExtraError(what, "prefect")
    from prefect_claim_dispatch.demo.run import main  # noqa: PLC0415 - wanted by this command only

    return main(directory=directory, keep=keep, answer=print_json if json else None)


@contextmanager
def needs_prefect(what: str) -> Generator[None]:
    """Tell a missing Prefect as the extra that brings it; any other missing module as what it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not comes_with_prefect(error):
            raise
        raise MissingExtraError(what, "prefect") from error


@contextmanager
def ended_by_signal() -> Generator[None]:
    """End the process as a shell expects it: 130 after Ctrl-C, 143 after SIGTERM.

    Work that outlasted its grace period holds the interpreter back at its end: it may take an hour, or for ever, with
    nobody renewing its lease. So it is left behind, to its lease, when everything else has been told to the API.
    """
    from prefect.exceptions import TerminationSignal  # noqa: PLC0415 - Prefect, as the caller has seen, is installed

    try:
        yield
    except KeyboardInterrupt:
        _leave(signal.SIGINT)
    except TerminationSignal as told:
        _leave(told.signal)


def _leave(signum: int) -> NoReturn:
    atexit._run_exitfuncs()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - logs and events on their way
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + signum)


def _print_report(report: DispatchReport) -> None:
    rows = [
        (type_, *(verdicts.get(verdict, 0) for verdict in VERDICTS))
        for type_, verdicts in sorted(report.by_type.items())
    ]
    if rows:
        print_table("", ("type", *VERDICTS), rows, right=",".join(VERDICTS))
    say(report.summary())
