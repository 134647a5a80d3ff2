"""Suspects: actions whose last attempt crashed. Each may be what took its process, so no two of them run together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.slots import Taker

CONVICTING = 2
"""Crashes in a row from which on an action is held for the cause of them."""

Group = list[RawAction]


class Trials:
    """Which of the groups that wait may begin now, so that nobody dies twice of another's fault.

    A crash accuses all that ran in the process, and one of them may be guilty. They are tried one at a time, beside
    fresh work: the next begins when the one before has ended, or has lived for the seconds that *length* gives each of
    so many suspects. What kills its process mostly does so at once, and what a deploy has killed may be hours of
    innocent work.

    What has crashed twice in a row is tried alone: for the length of a trial at most, the others are given time to end,
    and for as long at most, nothing begins beside it. What *is_harmless* names can't harm its neighbours, and is no
    suspect.
    """

    def __init__(self, length: Callable[[int], float], is_harmless: Callable[[str], bool]) -> None:
        self._length = length
        self._is_harmless = is_harmless
        self._most_waiting = 0
        self._tried: Taker | None = None
        self._is_alone = False
        self._cleared_since: float | None = None

    def is_suspect(self, raw: RawAction) -> bool:
        """Whether *raw* has to wait for its trial."""
        return self._crashes(raw) > 0

    def kept_waiting(self, claimed: Sequence[RawAction]) -> list[RawAction]:
        """What of *claimed* can't begin at once: suspects, and all if one of them is to be tried alone."""
        suspects = [raw for raw in claimed if self.is_suspect(raw)]
        is_alone = any(raw.crashes >= CONVICTING for raw in suspects)
        return list(claimed) if is_alone else suspects

    def chosen(self, waiting: Sequence[Group], most: int, running: Sequence[Taker]) -> list[Group]:
        """Up to *most* of the groups *waiting* that may begin now, beside what is *running*, in their order."""
        is_open = self._is_open(running)
        if is_open and self._is_alone:
            return []
        self._cleared_since, since = None, self._cleared_since
        self._count(waiting)
        chosen: list[Group] = []
        for group in waiting:
            crashes = self._crashes(group[0])
            if crashes >= CONVICTING and not is_open:
                self._cleared_since = elapsed_clock() if since is None else since
                is_clear = not running or self._has_lived_on(self._cleared_since)
                return [group] if is_clear else []
            if crashes and is_open:
                continue
            is_open = is_open or crashes > 0
            chosen.append(group)
            if len(chosen) == most:
                break
        return chosen

    def is_alone(self, running: Sequence[Taker]) -> bool:
        """Whether nothing may begin beside the one that is on trial, or that waits for the others to end."""
        return (self._is_open(running) and self._is_alone) or self._cleared_since is not None

    def begun(self, run: Taker, raw: RawAction) -> None:
        """*run*, of *raw*, was started: its trial, if it is a suspect."""
        crashes = self._crashes(raw)
        if crashes:
            self._tried, self._is_alone, self._cleared_since = run, crashes >= CONVICTING, None

    @property
    def seconds_left(self) -> float:
        """Until more may begin, though nothing ends before; infinite, if only an end can bring that."""
        since = self._cleared_since
        if since is None and self._tried is not None:
            since = self._tried.begun_at
        return math.inf if since is None else max(0.0, since + self._trial_seconds - elapsed_clock())

    @property
    def _trial_seconds(self) -> float:
        return self._length(self._most_waiting)

    def _count(self, waiting: Sequence[Group]) -> None:
        """How many trials there are to be: one for each suspect that waited since there was none."""
        crashes = [self._crashes(group[0]) for group in waiting]
        trials = sum(min(number, CONVICTING) for number in crashes)  # the time to end is as long as a trial
        self._most_waiting = max(self._most_waiting, trials) if trials else 0

    def _crashes(self, raw: RawAction) -> int:
        crashes = raw.crashes
        return 0 if crashes and self._is_harmless(raw.type) else crashes

    def _is_open(self, running: Sequence[Taker]) -> bool:
        """Whether somebody is on trial."""
        if self._tried is not None and (self._tried not in running or self._has_lived_on(self._tried.begun_at)):
            self._tried = None
        return self._tried is not None

    def _has_lived_on(self, since: float | None) -> bool:
        return since is not None and elapsed_clock() - since >= self._trial_seconds
