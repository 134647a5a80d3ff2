"""What a soak came to: counted from ledger, publish log, notes and table, and judged by the auditor."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.kit.auditor import examine, fenced
from tests.kit.cases import Case, Violation
from tests.kit.ledger import Entry
from tests.soak.chaos import DISTURBING, Fault

PERCENTILES = (50, 95, 99)
REPLACE = "replace-"  # how keys begin that publishers rewrite rows by


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was done, what came of it, how long recovery took (seconds, all and undisturbed), and what is broken."""

    faults: Mapping[str, int]
    counts: Mapping[str, int]
    recoveries: Sequence[float]
    undisturbed: Sequence[float]
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
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value:>12}" for name, value in rows]
        return "\n".join([*lines, *map(str, self.violations)])


def findings_of(
    case: Case, notes: Sequence[dict[str, Any]], faults: Sequence[Fault], more: Mapping[str, int], bound_seconds: float
) -> Findings:
    """All that can be said of *case* and the operator's and witnesses' *notes*; *more* counts are added."""
    recoveries = _recoveries(case, [fault for fault in faults if fault.what == "kill"])
    return Findings(
        faults=Counter(fault.what for fault in faults),
        counts={**_published(case), **_worked(case, notes), **more},
        recoveries=sorted(recovery.seconds for recovery in recoveries),
        undisturbed=sorted(recovery.seconds for recovery in recoveries if recovery.is_undisturbed(faults)),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A row that a killed process held: killed *at*, and *until* its processor began again.

    *is_direct*: the next claim of the row was the one that began; another that took it was not broken as well.
    """

    at: float
    until: float
    is_direct: bool

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.until - self.at

    def is_undisturbed(self, faults: Collection[Fault]) -> bool:
        """Whether the row met this one kill alone: the database was well, and so was whoever took it next."""
        meanwhile = (fault for fault in faults if fault.at <= self.until and fault.until >= self.at)
        return self.is_direct and not any(fault.what in DISTURBING for fault in meanwhile)


def _recoveries(case: Case, kills: Sequence[Fault]) -> list[Recovery]:
    claims: dict[int, list[Entry]] = defaultdict(list)
    for entry in case.ledger.entries:
        if entry.what == "claim":
            claims[entry.pid].append(entry)
    found = (_recovery(case, claim, kill) for kill in kills for claim in claims[kill.pid])
    return [recovery for recovery in found if recovery is not None]


def _recovery(case: Case, claim: Entry, kill: Fault) -> Recovery | None:
    """None where the process did not hold it any more, or nobody had to begin it again."""
    if claim.id in case.retried or claim.at > kill.at:
        return None
    verdicts = {entry.claim_count for entry in case.lines(claim.id, "accepted") if entry.outcome}
    later = [entry for entry in case.lines(claim.id, "claim") if entry.claim_count > claim.claim_count]
    if claim.claim_count in verdicts or any(entry.at <= kill.at for entry in later):
        return None
    begins = (entry for entry in case.lines(claim.id, "begin") if entry.claim_count > claim.claim_count)
    again = min((entry for entry in begins if entry.at > kill.at), key=lambda entry: entry.at, default=None)
    if again is None:
        return None
    return Recovery(at=kill.at, until=again.at, is_direct=again.claim_count == claim.claim_count + 1)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """By the nearest rank; *values* are sorted."""
    ranks = {f"p{percent}": math.ceil(len(values) * percent / 100) - 1 for percent in PERCENTILES}
    figures = {name: round(values[rank], 2) for name, rank in ranks.items()} if values else {}
    return {"rows": len(values), **figures}


def _spoken(values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in _percentiles(values).items())
