"""A witness at the table: what a claim loop was given, and what the table took and refused of its verdicts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect_claim_dispatch import claiming, rescuing, settling
from prefect_claim_dispatch.policies import Settlement
from prefect_claim_dispatch.reports import verdict_of
from tests.kit.ledger import Ledger
from tests.soak.notes import Notes


@dataclass(frozen=True, slots=True)
class Fence:
    """A claim, by all that a verdict says of it."""

    id: int
    claim_count: int
    fail_count: int = 0
    type: str = ""


def watch(ledger: Ledger, notes: Notes) -> None:
    """Have every claim, settle, renew and rescue of this process written down, after it was answered."""
    _watch_claims(ledger)
    _watch_verdicts(ledger, notes)
    _watch_leases(ledger, notes)


def _watch_claims(ledger: Ledger) -> None:
    claim = claiming.claim

    def witnessed(*arguments: Any, **options: Any) -> Any:
        sent_at = time.monotonic()
        claimed = claim(*arguments, **options)
        ledger.claimed(claimed, sent_at=sent_at)
        return claimed

    claiming.claim = witnessed


def _watch_verdicts(ledger: Ledger, notes: Notes) -> None:
    settle = settling.settle

    def witnessed(
        engine: Any, table: Any, settlements: Sequence[Settlement], run_ids: Any = None, buried: Any = None
    ) -> set[int]:
        sent_at = time.monotonic()
        instead: dict[int, Settlement] = {} if buried is None else buried
        taken = settle(engine, table, settlements, run_ids, instead)
        for one in (instead.get(settlement.id, settlement) for settlement in settlements):
            if one.id in taken:
                ledger.accepted(Fence(one.id, one.claim_count, one.fail_count), one.status.value, sent_at=sent_at)
            else:
                notes.write("refused", id=one.id, claim_count=one.claim_count, verdict=verdict_of(one))
        return taken

    settling.settle = witnessed


def _watch_leases(ledger: Ledger, notes: Notes) -> None:
    renew, rescue = claiming.renew, rescuing.rescue

    def witnessed_renew(engine: Any, table: Any, claims: Sequence[tuple[int, int]], **options: Any) -> set[int]:
        sent_at = time.monotonic()
        renewed = renew(engine, table, claims, **options)
        counts = dict(sorted(claims))
        for id_, claim_count in claims:
            # The answer names ids: of an action that is held twice here, it is the later claim's.
            if id_ in renewed and counts[id_] == claim_count:
                ledger.accepted(Fence(id_, claim_count), sent_at=sent_at)
        return renewed

    def witnessed_rescue(*arguments: Any, **options: Any) -> list[Settlement]:
        rescued = rescue(*arguments, **options)
        notes.write("rescued", number=len(rescued))
        return rescued

    claiming.renew, rescuing.rescue = witnessed_renew, witnessed_rescue
