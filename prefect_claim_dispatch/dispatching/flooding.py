"""Flood: so much is due that a claim need not look first what there is.

A survey walks over what was settled since the last vacuum, which in a flood is much and ever more: 15 ms at first, 31
after 800,000 rows, beside 10 ms of a claim. While each claim brings all that it asked for, what the last survey saw
holds on for the next. So it does where a survey takes long by itself, because there are tens of thousands of types:
while claims bring anything, it holds on for twice as long as it took.
"""

from __future__ import annotations

from typing import Final

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import Survey

LEAST: Final = 100
"""Rows of a claim that tell of a flood. Small claims are full all the time, and a survey costs them little."""

LOOK_EVERY: Final = 0.25
"""Seconds between surveys in a flood: so late a pause, a higher priority or a new type is seen in it."""


class Flood:
    """Whether there is one, by the claims that were made since the last survey."""

    def __init__(self) -> None:
        self._survey: Survey | None = None
        self._until = 0.0
        self._is_on = False
        self._is_slow = False

    @property
    def survey(self) -> Survey | None:
        """The last survey, while it holds on; None when it is time to look."""
        return self._survey if self._is_on and elapsed_clock() < self._until else None

    def looked(self, survey: Survey, took: float = 0.0) -> None:
        """A new *survey* was made, which took so many seconds."""
        self._survey, self._until = survey, elapsed_clock() + max(LOOK_EVERY, 2 * took)
        self._is_slow = took > LOOK_EVERY

    def claimed(self, number: int, *, of: int) -> None:
        """A claim asked for *of* rows, and brought *number*."""
        self._is_on = (number == of and number >= LEAST) or (self._is_slow and number > 0)

    def ended(self) -> None:
        """What the last survey saw does not hold any more."""
        self._is_on = False
