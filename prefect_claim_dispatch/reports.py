"""What one claim flow did: the report it returns, and the tally that becomes one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.outcomes import Released, Snooze
from prefect_claim_dispatch.policies import Settlement

_COLUMNS = ("processed", "retrying", "dead", "snoozed", "cancelled", "released")


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchReport:
    """What one run of the claim flow came to.

    Counts of actions, as the table took them: a verdict whose lease was lost counts only there. `runs` counts the runs
    that were started for the `dispatched` actions: fewer, where batches shared one.

    `unroutable` counts due actions of types that nobody registered, at the end of the run; `held_back` those of types
    that are paused, or of which as many run as their `max_running` allows. `by_type` has the verdicts for each type.
    """

    claimed: int = 0
    dispatched: int = 0
    runs: int = 0
    processed: int = 0
    retrying: int = 0
    dead: int = 0
    snoozed: int = 0
    cancelled: int = 0
    rescued: int = 0
    unroutable: int = 0
    lost_leases: int = 0
    released: int = 0
    held_back: int = 0
    by_type: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    @property
    def failed(self) -> int:
        """Attempts that failed: those that will be retried and those that are dead."""
        return self.retrying + self.dead

    @property
    def is_empty(self) -> bool:
        """True when there was nothing to do."""
        told = self.claimed, self.rescued, self.unroutable, self.lost_leases, self.held_back, self.by_type
        return not any(told)

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON object, `failed` included."""
        return {**asdict(self), "failed": self.failed}

    def summary(self) -> str:
        """One line for a log: everything that is not zero."""
        counts = {key: value for key, value in self.as_dict().items() if isinstance(value, int) and value}
        return ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items()) or "nothing was due"

    def as_markdown(self) -> str:
        """A table for a Prefect artifact. Holds types and counts, nothing of a payload."""
        lines = [
            "# Claim dispatch",
            "",
            f"Claimed **{self.claimed:,}**, dispatched **{self.dispatched:,}** in **{self.runs:,}** runs, "
            f"rescued **{self.rescued:,}**, unroutable **{self.unroutable:,}**, held back **{self.held_back:,}**, "
            f"lost leases **{self.lost_leases:,}**.",
            "",
            "| type | " + " | ".join(_COLUMNS) + " |",
            "| --- |" + " ---: |" * len(_COLUMNS),
        ]
        for type_, verdicts in sorted(self.by_type.items()):
            cells = " | ".join(f"{verdicts.get(column, 0):,}" for column in _COLUMNS)
            lines.append(f"| {_escaped(type_)} | {cells} |")
        totals = " | ".join(f"**{getattr(self, column):,}**" for column in _COLUMNS)
        return "\n".join([*lines, f"| **all** | {totals} |", ""])


class Tally:
    """Counts while a claim flow runs; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._by_type: dict[str, Counter[str]] = {}

    def add(self, what: str, number: int = 1) -> None:
        """Count *number* more of *what*, a field of `DispatchReport`."""
        with self._lock:
            self._counts[what] += number

    def settled(self, settlements: Iterable[tuple[str, Settlement]]) -> None:
        """Count verdicts that the table took, each with the type of its action."""
        verdicts = Counter((type_, verdict_of(settlement)) for type_, settlement in settlements)
        with self._lock:
            for (type_, verdict), number in verdicts.items():
                self._counts[verdict] += number
                self._by_type.setdefault(type_, Counter())[verdict] += number

    def report(self) -> DispatchReport:
        """The counts so far."""
        with self._lock:
            by_type = {type_: dict(verdicts) for type_, verdicts in self._by_type.items()}
            return DispatchReport(**self._counts, by_type=by_type)


def verdict_of(settlement: Settlement) -> str:
    """The report's name for a verdict: processed, dead, cancelled, retrying, snoozed or released."""
    if settlement.status is not ActionStatus.PENDING:
        return settlement.status.value
    if isinstance(settlement.outcome, Released):
        return "released"
    return "snoozed" if isinstance(settlement.outcome, Snooze) else "retrying"


def _escaped(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>()#+!|~" else character for character in printable)
