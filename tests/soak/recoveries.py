"""How long the rows of a killed process took to begin again, and what else had happened to them meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tests.kit.cases import Case
from tests.kit.ledger import Entry
from tests.soak.chaos import DISTURBING, KILL, Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A row that a killed process held; monotonic instants.

    It was killed *at*; the process *holder* had claimed the row anew *claimed_at*, and its processor began *until*.
    *is_direct*: no other claim came between. *is_moved*: somebody changed when the row is due.
    """

    id: int
    at: float
    claimed_at: float
    holder: int
    until: float
    is_direct: bool
    is_moved: bool

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.until - self.at

    def is_undisturbed(self, faults: Collection[Fault]) -> bool:
        """Whether the row met this one kill alone: the database was well, and so was whoever took it next."""
        if self.is_moved or not self.is_direct:
            return False
        meanwhile = (fault for fault in faults if fault.at <= self.until and fault.until >= self.at)
        return not any(
            fault.what in DISTURBING or (fault.pid == self.holder and fault.until >= self.claimed_at)
            for fault in meanwhile
        )

    def __str__(self) -> str:
        """Where the time went."""
        waited, stood = self.claimed_at - self.at, self.until - self.claimed_at
        return (
            f"#{self.id}: {self.seconds:.2f} s = {waited:.2f} until {self.holder} claimed it, {stood:.2f} in its line"
        )


def recoveries(case: Case, faults: Sequence[Fault], moved: Collection[int]) -> Iterator[Recovery]:
    """Each claim that a SIGKILL ended and somebody began again; *moved*: the ids whose due time was changed."""
    claims: dict[int, list[Entry]] = defaultdict(list)
    for entry in case.ledger.entries:
        if entry.what == "claim":
            claims[entry.pid].append(entry)
    for kill in faults:
        for claim in claims[kill.pid] if kill.what == KILL else ():
            found = _recovery(case, claim, kill, claim.id in moved)
            if found is not None:
                yield found


def _recovery(case: Case, claim: Entry, kill: Fault, is_moved: bool) -> Recovery | None:
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
    return Recovery(
        id=claim.id,
        at=kill.at,
        # A claim whose line is not there, since its process was killed before it was written, counts as begun at once.
        claimed_at=next((entry.at for entry in later if entry.fence == again.fence), again.at),
        holder=again.pid,
        until=again.at,
        is_direct=again.claim_count == claim.claim_count + 1,
        is_moved=is_moved,
    )
