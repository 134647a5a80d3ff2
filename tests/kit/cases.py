"""What the auditor looks at, and how it says what is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from prefect_claim_dispatch.policies import KEPT_ERRORS
from prefect_claim_dispatch.rows import ActionRow
from tests.kit.ledger import Entry, Lines


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One promise, broken: `ids` are the rows, `what` a sentence for whoever reads the report."""

    promise: str
    ids: tuple[int, ...]
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that the auditor looks at.

    *pruned* and *retried* are the ids that an operator pruned or sent again; *replaced* those that a publisher may have
    rewritten, whose attempts are then counted anew; *earlier* are terminal rows as they were seen before. *ended*: the
    last fault has healed and everything due had its time, so L1 is asked; *workers* are pids that must have claimed
    after the monotonic instant *healed_at*. *bad* are the ids of bad rows, given where nothing but they did harm, so
    that L2 can be asked, with *patience* for the others. *wall_clocks*: the processes' clocks are the database's.
    *secrets* are payload texts that must not be in *exposed*, which are named texts of Prefect's.
    """

    rows: Sequence[ActionRow]
    now: datetime
    ledger: Lines = field(default_factory=Lines)
    published: Lines = field(default_factory=Lines)
    pruned: Collection[int] = ()
    retried: Collection[int] = ()
    replaced: Collection[int] = ()
    earlier: Sequence[ActionRow] = ()
    max_attempts: int = 5
    ended: bool = True
    unroutable: Collection[str] = ()
    workers: Collection[int] = ()
    healed_at: float = 0.0
    bad: Collection[int] | None = None
    patience: timedelta | None = None
    wall_clocks: bool = True
    secrets: Collection[str] = ()
    exposed: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def by_id(self) -> dict[int, ActionRow]:
        """The rows by id."""
        return {row.id: row for row in self.rows}

    @cached_property
    def history(self) -> dict[int, list[Entry]]:
        """The ledger's lines of each action, in order of time."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.ledger.entries:
            found[entry.id].append(entry)
        return dict(found)

    def lines(self, id_: int, what: str) -> list[Entry]:
        """One action's lines of one kind."""
        return [entry for entry in self.history.get(id_, ()) if entry.what == what]

    def ends(self, id_: int) -> dict[int, str]:
        """What each claim of an action ended with, where the execution came to its end."""
        return {entry.claim_count: entry.outcome for entry in self.lines(id_, "end")}

    def is_explained(self, id_: int, claim_count: int) -> bool:
        """The table says how that claim ended, or can't say so any more."""
        row = self.by_id.get(id_)
        if row is None or id_ in self.retried:
            return True
        recorded = [error.get("claim_count") for error in row.errors]
        return claim_count in recorded or (len(recorded) >= KEPT_ERRORS and claim_count < min(map(number, recorded)))


def number(claim_count: object) -> int:
    """A claim's number as `errors` has it, which anybody may have written; 0 when it is none."""
    return claim_count if isinstance(claim_count, int) else 0
