"""Turns: which lanes come first in the next claim, so that a flood of one type keeps no other waiting for long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from prefect_claim_dispatch.claiming import Lane, RawAction

Served = tuple[str, int]


class Turns:
    """A round for each priority: whoever was served in it comes after those that were not, until all have been.

    Where a claim has room for all lanes nothing is changed, and the longest due come first. Where one lane could fill
    every claim, another with something due waits for at most as many claims as there are lanes of its priority.
    """

    def __init__(self) -> None:
        self._served: set[Served] = set()

    def given(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """*lanes*, each with its `turn`: highest priority first, then whose turn it is, otherwise as they were."""
        due = list(lanes)
        for priority in {lane.priority for lane in due}:
            of_priority = {(lane.type, lane.priority) for lane in due if lane.priority == priority}
            if of_priority <= self._served:
                self._served -= of_priority
        turned = [replace(lane, turn=int((lane.type, lane.priority) in self._served)) for lane in due]
        return tuple(sorted(turned, key=lambda lane: (-lane.priority, lane.turn)))

    def serve(self, claimed: Sequence[RawAction]) -> None:
        """Note whose actions were *claimed*."""
        self._served.update((raw.type, raw.priority) for raw in claimed)
