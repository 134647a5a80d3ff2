"""A run of the guard in a thread of its own: it calls code of the author's, which may take any time."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.outcomes import Failed, Outcome

Answer = TypeVar("Answer")


class GuardRun(Generic[Answer]):
    """What *ask* says of each row of *group*, worked out off the loop's thread.

    It counts as one of the runs that have a slot, and as the trial of a suspect: what takes a process with it may do so
    here. Nothing is begun by it: it may be given up at any time, at no attempt. *on_over* is called from its thread.
    After the time *within* it asks about no more rows.
    """

    works: tuple[Work, ...] = ()
    has_begun = False

    def __init__(
        self,
        group: Sequence[RawAction],
        ask: Callable[[RawAction], Answer | Outcome],
        on_over: Callable[[GuardRun[Answer]], None] | None = None,
        *,
        within: timedelta | None = None,
    ) -> None:
        self.group = group
        self.begun_at: float | None = None
        self.answers: list[tuple[RawAction, Answer | Outcome]] = []
        self._ask = ask
        self._on_over = on_over
        self._within = within
        self._is_given_up = False
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to ask. A daemon: what never answers must not keep the process from ending."""
        self.begun_at = elapsed_clock()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="claim-dispatch-guard", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether `answers` has all that will come."""
        return self._over.is_set()

    @property
    def left(self) -> Sequence[RawAction]:
        """The rows that were not asked about, for want of time."""
        return self.group[len(self.answers) :]

    def wait(self, within: timedelta) -> bool:
        """Whether it is over *within* that time."""
        return self._over.wait(within.total_seconds())

    def is_late(self, within: timedelta) -> bool:
        """Whether it began longer ago than that."""
        return self.begun_at is not None and elapsed_clock() - self.begun_at > within.total_seconds()

    def give_up(self) -> None:
        """Ask about no more rows; whoever calls this answers for all of them."""
        self._is_given_up = True

    def _run(self) -> None:
        try:
            for raw in self.group:
                if self._is_given_up or (self.answers and self._within is not None and self.is_late(self._within)):
                    break
                self.answers.append((raw, self._answer(raw)))
        finally:
            self._over.set()
            if self._on_over is not None:
                self._on_over(self)

    def _answer(self, raw: RawAction) -> Answer | Outcome:
        try:
            return self._ask(raw)
        except BaseException as error:  # noqa: BLE001 - no signal is raised in this thread: it is the author's
            return Failed.from_exception(error)
