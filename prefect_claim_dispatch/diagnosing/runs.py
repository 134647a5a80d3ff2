"""Judging the runs of the claim flow's deployments: do they end well, which are dead, and where do they claim?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import takewhile
from typing import Final

from prefect_claim_dispatch.diagnosing.facts import DeploymentFacts, HoldingFacts, LimitFacts, RunFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, warning
from prefect_claim_dispatch.diagnosing.judging import rough

MANY: Final = 3
"""So many runs in a row that end badly are no bad moment."""

MESSAGE_LENGTH: Final = 200
NO_LIMIT: Final = (
    "; and deploy without a concurrency limit, as prefect.yaml does, or set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE "
    "where the Prefect server runs, see deployments/README.md"
)


def judge_runs(facts: DeploymentFacts, held: HoldingFacts | None, patience: timedelta) -> list[Finding]:
    """What its runs tell of a deployment. *held*: as the table has it; None where it can't be asked."""
    zombies = [] if held is None else [run for run in facts.living if _is_zombie(run, held, patience)]
    return [*_ends(facts), *_table(facts, held), *_zombies(facts, zombies), *_slots(facts)]


def _ends(facts: DeploymentFacts) -> list[Finding]:
    ended = [run for run in facts.ended if not run.is_refused]
    bad = list(takewhile(lambda run: run.type != "COMPLETED", ended))
    if not bad or len(bad) < min(MANY, len(ended)):
        return []
    newest = bad[0]
    said = newest.message.strip().split("\n")[0][:MESSAGE_LENGTH]
    states = ", ".join(sorted({run.state for run in bad}))
    what = f"deployment {facts.name}: its latest runs, {len(bad)}, ended {states}" + (
        f"; the last: {said}" if said else ""
    )
    remedy = f"see: prefect flow-run logs {newest.id}"
    return [(failure if len(bad) >= MANY else warning)("runs", what, remedy)]


def _table(facts: DeploymentFacts, held: HoldingFacts | None) -> list[Finding]:
    """Only the newest that has told: an earlier one may be from before somebody put it right."""
    told = next((run for run in (*facts.living, *facts.ended) if run.table is not None), None)
    if held is None or told is None or told.table == held.identity:
        return []
    what = f"deployment {facts.name} claims from another table than this one: run {told.name} did"
    remedy = "set the same CLAIM_DISPATCH_DATABASE_URL, CLAIM_DISPATCH_TABLE and CLAIM_DISPATCH_SCHEMA here and there"
    return [failure("runs", what, f"{remedy}; or look at its parameters database and table")]


def _is_zombie(run: RunFacts, held: HoldingFacts, patience: timedelta) -> bool:
    """Whether its process is gone. One that lives stays for its time, and then holds the claims of what it works on."""
    return run.age > run.stay + patience and run.id not in held.holders and run.table in (None, held.identity)


def _zombies(facts: DeploymentFacts, zombies: Sequence[RunFacts]) -> list[Finding]:
    if not zombies:
        return []
    is_full = facts.limit is not None and facts.limit.is_full
    is_pool_full = facts.pool_slots is not None and len(facts.living) >= facts.pool_slots
    named = ", ".join(f"{run.name} ({run.state} for {rough(run.age)})" for run in zombies)
    what = f"deployment {facts.name} has runs that nobody works on any more: {named}"
    remedy = "; ".join(f"prefect flow-run delete {run.id}" for run in zombies)
    remedy = f"end them: {remedy}; or set them to Crashed in the UI"
    if is_full or is_pool_full:
        return [failure("runs", f"{what}; they hold slots that new runs wait for", remedy + NO_LIMIT)]
    return [warning("runs", what, remedy)]


def _slots(facts: DeploymentFacts) -> list[Finding]:
    limit, living = facts.limit, len(facts.living)
    if limit is None or limit.taken <= living:
        return []
    what = f"deployment {facts.name}: {limit.taken} of its {limit.slots} slots are taken, and {living} of its runs live"
    remedy = f"give them back: {_give_back(limit, living)}" + NO_LIMIT
    return [(failure if limit.is_full else warning)("runs", what, remedy)]


def _give_back(limit: LimitFacts, living: int) -> str:
    return f"prefect global-concurrency-limit update {limit.name} --active-slots {living}"
