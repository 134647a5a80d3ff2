"""What a soak came to: counted from ledger, publish log, notes and table, and judged by the auditor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.kit.auditor import examine, fenced
from tests.kit.cases import Case, Violation
from tests.soak.chaos import Fault
from tests.soak.recoveries import Recovery, recoveries

PERCENTILES = (50, 95, 99)
SLOWEST = 5
"""So many of the slowest recoveries are told one by one."""
REPLACE = "replace-"  # how keys begin that publishers rewrite rows by


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was done, what came of it, the recoveries (all and undisturbed, the quickest first), and what is broken."""

    faults: Mapping[str, int]
    counts: Mapping[str, int]
    recoveries: Sequence[Recovery]
    undisturbed: Sequence[Recovery]
    bound_seconds: float
    violations: Sequence[Violation]

    @property
    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "faults": dict(self.faults),
            "counts": dict(self.counts),
            "recovery": {"all": _percentiles(self.recoveries), "undisturbed": _percentiles(self.undisturbed)},
            "bound_seconds": self.bound_seconds,
            "violations": [str(violation) for violation in self.violations],
        }

    @property
    def table(self) -> str:
        """One table to read, the violations below it."""
        rows = [
            *((f"done to it: {what}", f"{number:,}") for what, number in sorted(self.faults.items())),
            *((what, f"{number:,}") for what, number in self.counts.items()),
            ("recovery after SIGKILL, undisturbed", _spoken(self.undisturbed)),
            ("recovery after SIGKILL, all", _spoken(self.recoveries)),
            ("recovery, bound for p99", f"{self.bound_seconds:.1f} s"),
            ("violations", f"{len(self.violations):,}"),
        ]
        slowest = [f"undisturbed and slow: {recovery}" for recovery in self.undisturbed[-1 : -SLOWEST - 1 : -1]]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value:>12}" for name, value in rows]
        return "\n".join([*lines, *slowest, *map(str, self.violations)])


def findings_of(
    case: Case, notes: Sequence[dict[str, Any]], faults: Sequence[Fault], more: Mapping[str, int], bound_seconds: float
) -> Findings:
    """All that can be said of *case* and the operator's and witnesses' *notes*; *more* counts are added."""
    moved = ids_noted(notes, "rescheduled") | case.replaced
    found = sorted(recoveries(case, faults, moved), key=lambda recovery: recovery.seconds)
    return Findings(
        faults=Counter(fault.what for fault in faults),
        counts={**_published(case), **_worked(case, notes), **more},
        recoveries=found,
        undisturbed=[recovery for recovery in found if recovery.is_undisturbed(faults)],
        bound_seconds=bound_seconds,
        violations=examine(case),
    )


def ids_noted(notes: Sequence[dict[str, Any]], what: str) -> set[int]:
    """The ids in all notes of one kind."""
    return {id_ for note in notes if note["what"] == what for id_ in note["ids"]}


def _published(case: Case) -> dict[str, int]:
    kinds = Counter(entry.what for entry in case.published.entries)
    receipts = Counter(entry.outcome for entry in case.published.entries if entry.what == "published")
    statuses = Counter(str(row.status) for row in case.rows)
    return {
        "publishes asked for": kinds["asked"],
        "publishes acknowledged": kinds["published"],
        "... of them created": receipts["created"],
        "... of them kept": receipts["kept"],
        "... of them replaced": receipts["replaced"],
        "publishes refused or rolled back": kinds["refused"],
        "publishes never answered": kinds["asked"] - kinds["published"] - kinds["refused"],
        **{f"rows {status} in the end": number for status, number in sorted(statuses.items())},
        "rows pruned": len(case.pruned),
    }


def _worked(case: Case, notes: Sequence[dict[str, Any]]) -> dict[str, int]:
    entries = Counter(entry.what for entry in case.ledger.entries)
    settled = sum(entry.what == "accepted" and bool(entry.outcome) for entry in case.ledger.entries)
    refused = [note for note in notes if note["what"] == "refused"]
    stale = sum(_is_stale(case, note["id"], note["claim_count"]) for note in refused)
    accepted = len(list(fenced(case)))
    return {
        "claims": entries["claim"],
        "executions begun": entries["begin"],
        "executions ended": entries["end"],
        "verdicts taken by the table": settled,
        "leases renewed": entries["accepted"] - settled,
        "claims rescued": sum(note["number"] for note in notes if note["what"] == "rescued"),
        "stale settles attempted": stale + accepted,
        "stale settles accepted": accepted,
        "settles repeated after a lost answer": len(refused) - stale,
        "rows an operator cancelled": len(ids_noted(notes, "cancelled")),
        "rows an operator retried": len(ids_noted(notes, "retried")),
        "rows an operator rescheduled": len(ids_noted(notes, "rescheduled")),
    }


def _is_stale(case: Case, id_: int, claim_count: int) -> bool:
    """Whether that claim was over; else its verdict was there already, and only its answer had been lost."""
    row = case.by_id.get(id_)
    later = [entry.claim_count for entry in case.lines(id_, "claim") + case.lines(id_, "begin")]
    if row is not None:
        later.append(row.claim_count)
        crashed = any(
            error.get("kind") == "crashed" and error.get("claim_count") == claim_count for error in row.errors
        )
        return crashed or max(later) > claim_count
    return max(later, default=0) > claim_count


def _percentiles(recoveries: Sequence[Recovery]) -> dict[str, float]:
    """By the nearest rank; they are sorted."""
    values = [recovery.seconds for recovery in recoveries]
    ranks = {f"p{percent}": math.ceil(len(values) * percent / 100) - 1 for percent in PERCENTILES}
    figures = {name: round(values[rank], 2) for name, rank in ranks.items()} if values else {}
    return {"rows": len(values), **figures}


def _spoken(recoveries: Sequence[Recovery]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in _percentiles(recoveries).items())
