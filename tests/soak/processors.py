"""What the soak's actions do, as their payloads say: take a while, fail, snooze, cancel."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from functools import cache
from typing import Any

from prefect_claim_dispatch import Action, Cancel, Snooze, processor
from tests.kit.ledger import Ledger
from tests.soak.scenario import Part

# kind: (share, shortest and longest execution in seconds, or in leases where it shall outlast one)
KINDS: dict[str, tuple[float, float, float]] = {
    "quick": (0.38, 0.02, 0.3),
    "steady": (0.37, 0.8, 2.5),
    "flaky": (0.08, 0.02, 0.5),
    "doomed": (0.02, 0.01, 0.1),
    "snoozing": (0.04, 0.02, 0.2),
    "unwanted": (0.03, 0.01, 0.2),
    "outlasting": (0.08, 1.1, 1.5),
}


def drawn_payload(dice: random.Random, lease_seconds: float) -> dict[str, Any]:
    """The payload of an action whose kind and length were drawn."""
    kind = dice.choices(list(KINDS), [share for share, _, _ in KINDS.values()])[0]
    _, shortest, longest = KINDS[kind]
    unit = lease_seconds if kind == "outlasting" else 1.0
    return {"kind": kind, "seconds": round(unit * dice.uniform(shortest, longest), 3), "fails": dice.randint(1, 2)}


class DrawnError(Exception):
    """The failure that was drawn."""


@cache
def _ledger() -> Ledger:
    return Ledger(Part.of_environment().ledger)


@processor("soak.*")
def work(payload: dict[str, Any], action: Action) -> Snooze | Cancel | None:
    """Do what the payload says, and write down when it begins and what it comes to."""
    ledger = _ledger()
    ledger.begin(action)
    threading.Event().wait(payload["seconds"])
    match payload["kind"]:
        case "doomed":
            ledger.end(action, "failed")
            raise DrawnError(payload["kind"])
        case "flaky" if action.fail_count < payload["fails"]:
            ledger.end(action, "failed")
            raise DrawnError(payload["kind"])
        case "snoozing" if action.claim_count <= payload["fails"]:
            ledger.end(action, "snoozed")
            return Snooze(timedelta(seconds=payload["seconds"]))
        case "unwanted":
            ledger.end(action, "cancelled")
            return Cancel("not wanted")
        case _:
            ledger.end(action)
            return None
