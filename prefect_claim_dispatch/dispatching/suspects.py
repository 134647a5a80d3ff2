"""Suspects: actions whose last attempt crashed. Each may be what took its process, so each begins alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import RawAction


class Portion(NamedTuple):
    """What of a claim is dispatched now, and what is given back."""

    kept: list[RawAction]
    given_back: list[RawAction]
    has_suspects: bool


def portion_of(claimed: Sequence[RawAction], suspects: Sequence[RawAction], *, is_busy: bool) -> Portion:
    """What of *claimed* may be dispatched now: all of it; of a claim with *suspects*, one of them and nothing else.

    Beside work that runs already no suspect is kept, or the two could take each other's attempts; the others are.
    """
    if not suspects:
        return Portion(list(claimed), [], has_suspects=False)
    apart = suspects if is_busy else suspects[:1]
    others = [raw for raw in claimed if raw not in apart]
    kept, given_back = (others, list(apart)) if is_busy else (list(apart), others)
    return Portion(kept, given_back, has_suspects=True)


class Suspicion:
    """Which actions a claim loop holds for suspects: not those that can't harm it, and none for ever.

    A deploy that kills its flows leaves suspects which are hours of innocent work. One that has waited for *patience*
    since it was first met here begins like any other.
    """

    def __init__(self, patience: timedelta, is_harmless: Callable[[str], bool]) -> None:
        self._patience = patience.total_seconds()
        self._is_harmless = is_harmless
        self._met_at: dict[int, float] = {}

    def among(self, claimed: Sequence[RawAction]) -> list[RawAction]:
        """The suspects of *claimed*, in their order."""
        return [raw for raw in claimed if raw.is_suspect and not self._is_harmless(raw.type) and self._waits(raw.id)]

    def _waits(self, id_: int) -> bool:
        now = elapsed_clock()
        return now - self._met_at.setdefault(id_, now) < self._patience
