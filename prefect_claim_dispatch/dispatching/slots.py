"""Slots: the runs that a claim flow has started and that have not ended, and every way to wait for them."""

from __future__ import annotations

import threading
from typing import Final

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dispatching.batches import Workload
from prefect_claim_dispatch.dispatching.work import Work

POLL: Final = 1.0


class Slots:
    """At most *number* runs at a time.

    Here and not in the dispatcher's modes, which have a pool each: tasks and subflows share the slots.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._freed = threading.Condition()
        self._taken: set[Workload] = set()
        self._ended = 0
        self._is_woken = False

    def __len__(self) -> int:
        with self._freed:
            return len(self._taken)

    @property
    def left(self) -> int:
        """How many runs may start."""
        with self._freed:
            return self._number - len(self._taken)

    @property
    def ended(self) -> int:
        """How many runs have ended so far."""
        with self._freed:
            return self._ended

    @property
    def runs(self) -> list[Workload]:
        """The runs that have not ended."""
        with self._freed:
            return list(self._taken)

    @property
    def works(self) -> list[Work]:
        """All that the runs do or are to do."""
        with self._freed:
            return [work for run in self._taken for work in run.works]

    def take(self, run: Workload) -> None:
        """Count *run* until it is freed."""
        with self._freed:
            self._taken.add(run)

    def free(self, run: Workload) -> None:
        """*run* has ended."""
        with self._freed:
            self._taken.discard(run)
            self._ended += 1
            self._freed.notify_all()

    def wait_for_one(self) -> None:
        """Until another run may start."""
        with self._freed:
            self._freed.wait_for(lambda: len(self._taken) < self._number)

    def wait_for_more_ended(self, ended: int, within: float = POLL) -> None:
        """Until more than *ended* have, or *within* seconds: a row may have become due meanwhile, with slots free."""
        with self._freed:
            self._freed.wait_for(lambda: self._ended > ended, within)

    def wait_for_more_ended_or_wake(self, ended: int, within: float) -> None:
        """As `wait_for_more_ended`, or until something was published, if there is a slot for it."""

        def is_over() -> bool:
            return self._ended > ended or (self._is_woken and len(self._taken) < self._number)

        with self._freed:
            self._freed.wait_for(is_over, within)

    def wait_for_none(self) -> None:
        """Until all have ended."""
        with self._freed:
            self._freed.wait_for(lambda: not self._taken)

    def wait_for_none_begun(self, within: float) -> bool:
        """Until nothing that was begun goes on, *within* seconds at most; whether that is so."""
        with self._freed:
            return self._freed.wait_for(lambda: not any(run.has_begun for run in self._taken), within)

    def pause(self, seconds: float) -> None:
        """Wait, or until something ends."""
        if seconds > 0:
            with self._freed:
                self._freed.wait(seconds)

    def doze(self, seconds: float) -> None:
        """As `pause`, or until something was published."""
        with self._freed:
            if not self._is_woken:
                self._freed.wait(seconds)

    def wake(self) -> None:
        """Something was published; from any thread. It holds until `heed`."""
        with self._freed:
            self._is_woken = True
            self._freed.notify_all()

    def heed(self) -> None:
        """What was published until now is about to be looked for."""
        with self._freed:
            self._is_woken = False

    def rest(self, seconds: float) -> None:
        """Wait, whatever ends meanwhile: each of a thousand ends would otherwise be a try of its own."""
        until = elapsed_clock() + seconds
        with self._freed:
            self._freed.wait_for(lambda: elapsed_clock() >= until, seconds)
