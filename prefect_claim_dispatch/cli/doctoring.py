"""``claim-dispatch doctor``: is everything there that claims actions, and is it at work."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cyclopts import App

from prefect_claim_dispatch import databases
from prefect_claim_dispatch.cli.options import Common, Duration, find_modules_here
from prefect_claim_dispatch.cli.output import output_to_stderr, print_json, say

HEALTHY: Final = 0
ILL: Final = 1


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(doctor)


def doctor(
    *,
    processors: tuple[str, ...] | None = None,
    deployment: tuple[str, ...] = (),
    patience: Duration | None = None,
    common: Common | None = None,
) -> int:
    """Check database, table, grants, clock, stuck rows, and what Prefect does with the claim flow; say what to do.

    Changes nothing. Exit code 1 on errors, 0 with warnings. Run it as the role, and where, the claim flow runs.

    Args:
        processors: A module whose processors to register; may be given more than once.
        deployment: Look at this deployment, FLOW/NAME, only; may be given more than once. All of the flow
            claim-dispatch unless given.
        patience: How long a transaction may last, and a row be due or its lease be over: 5m unless given.
        common: Database, table, and how to answer.
    """
    from prefect_claim_dispatch.diagnosing import examining, judging  # noqa: PLC0415 - Alembic, which --help does without

    common = common or Common()
    find_modules_here()
    with output_to_stderr():  # what users' modules print, and Prefect
        findings = examining.examine(
            examining.Patient(
                url=common.url,
                table=common.table,
                processors=processors or None,
                deployments=deployment,
                patience=judging.PATIENCE if patience is None else patience,
            )
        )
    numbers = Counter(finding.level.value for finding in findings)
    if common.json:
        table = databases.table_named(common.table).fullname
        found = [finding.as_dict() for finding in findings]
        print_json({"table": table, "errors": numbers["error"], "warnings": numbers["warning"], "findings": found})
    else:
        for finding in findings:
            say(f"{finding.level.value:<8} {finding.check:<11} {finding.what}")
            if finding.remedy:
                say(f"{'':<20} to do: {finding.remedy}")
        say(f"errors: {numbers['error']}, warnings: {numbers['warning']}")
    return ILL if numbers["error"] else HEALTHY
