"""Facts: what was found, before anybody has judged it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The database. *skew*: its clock less ours; None where it has no clock of its own."""

    dialect: str
    version: str
    skew: timedelta | None = None
    is_read_only: bool = False
    is_pooled: bool = False
    journal_mode: str | None = None
    file: Path | None = None
    is_file_writable: bool = True
    is_folder_writable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RightsFacts:
    """What the connected role may do: right (``select``, ``insert``, ``update``) by column that is there."""

    rights: Mapping[str, frozenset[str]]

    def lacks(self, right: str, columns: tuple[str, ...]) -> list[str]:
        """Those of *columns* for which the role has not got *right*."""
        return [name for name in columns if right not in self.rights.get(name, frozenset())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Something that keeps dead rows from being removed; *age* is None where it can't be seen."""

    kind: str
    who: str
    age: timedelta | None
    transactions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TupleFacts:
    """Estimates of the table's row versions."""

    live: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFacts:
    """What is claimed: how many leases are over, for how long the oldest is, and how old the oldest claim is."""

    expired: int = 0
    overdue: timedelta = timedelta(0)
    oldest: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockingFacts:
    """The head of an ordering key, eligible *until_due* from now: *waiting* due actions are behind it, for *waited*."""

    ordering_key: str
    id: int
    type: str
    until_due: timedelta
    waiting: int
    waited: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingFacts:
    """The table as the runs of claim flows show it: its *identity*, and who holds a claim whose lease lives."""

    identity: str
    holders: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run of a claim flow; *age*: how long it is in its state. *table*: the identity of the one that it claims from.

    *is_refused*: Prefect cancelled it before it began, since its deployment's concurrency limit was full.
    """

    id: str
    name: str
    type: str
    state: str
    message: str = ""
    age: timedelta = timedelta(0)
    stay: timedelta = timedelta(0)
    table: str | None = None
    is_refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """A concurrency limit of a deployment, and how many of its slots are taken."""

    name: str
    slots: int
    taken: int

    @property
    def is_full(self) -> bool:
        """Whether no run finds a slot."""
        return self.taken >= self.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFacts:
    """A deployment of the claim flow. *workers*: online ones of its pool; None where the pool needs none.

    *ended* are its latest runs that have ended, the newest at the head, and *living* those that have not. *pool_slots*:
    how many runs its pool, or its queue there, lets live at a time. *unset*: variables that were not set where it was
    deployed, so that their templates are left in its pull steps.
    """

    name: str
    is_paused: bool = False
    active_schedules: int = 0
    interval: timedelta | None = None
    stay: timedelta = timedelta(0)
    pool: str | None = None
    is_pool_there: bool = True
    is_pool_paused: bool = False
    pool_slots: int | None = None
    workers: int | None = None
    is_ready: bool = True
    late_runs: int = 0
    limit: LimitFacts | None = None
    ended: tuple[RunFacts, ...] = ()
    living: tuple[RunFacts, ...] = ()
    unset: tuple[str, ...] = ()

    @property
    def overlapping(self) -> int:
        """How many of its runs live at a time, as its schedule and their stay have it; 0 where that is not known."""
        return math.ceil(self.stay / self.interval) if self.interval else 0
