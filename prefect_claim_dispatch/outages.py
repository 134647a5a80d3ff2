"""What is away for a while: asked ever more seldom, and told once when it goes and once when it is back."""

from __future__ import annotations

import logging
import random
from typing import Final

from prefect_claim_dispatch.actions import elapsed_clock

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0


class Outage:
    """How long *what* has been away, and when to ask for it again. For one thread.

    A line for every try would bury the one that matters, and thousands of flows that ask at once are the next outage:
    so the pause doubles up to 5 seconds, with jitter, and only a change is told.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at = 0.0
        self._tries = 0
        self._told: type[BaseException] | None = None

    @property
    def is_on(self) -> bool:
        """Whether the last try was in vain."""
        return self._tries > 0

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 when there is none."""
        return elapsed_clock() - self._began_at if self.is_on else 0.0

    def failed(self, error: BaseException) -> float:
        """Note a try that was in vain; returns the seconds until the next."""
        if not self.is_on:
            self._began_at = elapsed_clock()
        # No further: after an hour of tries, the power itself would be too large for a float.
        doublings = min(self._tries, 10)
        pause = min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        self._tries += 1
        if self._told is not type(error):
            self._told = type(error)
            logger.warning("%s, trying again in %.1f s, then ever more seldom: %s", self._what, pause, error)
        return pause

    def ended(self) -> None:
        """Note that a try went well."""
        if self.is_on:
            logger.warning("%s: over after %.1f s and %d tries in vain", self._what, self.seconds, self._tries)
        self._tries, self._told = 0, None
