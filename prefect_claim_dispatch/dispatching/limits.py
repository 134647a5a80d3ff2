"""Limits of a claim flow: which due types are full, by the `max_running` of their processors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.dispatching.routing import Routing


class Limits:
    """Leaves out what is full before anything is claimed, so that it keeps nobody waiting and is not looked at again.

    *running* counts what is claimed of each type; *settle* has the verdicts written that are not yet, since what has
    ended here may be what was waited for, and answers whether there were any. The limit itself is kept by the claim,
    which counts again: see `limiting`.
    """

    def __init__(
        self, routing: Routing, running: Callable[[], Mapping[str, int]], settle: Callable[[], object] = bool
    ) -> None:
        self._routing = routing
        self._running = running
        self._settle = settle
        self.full: tuple[Lane, ...] = ()

    def with_room(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* of whose type more may be claimed; the others are `full`, until it is asked again.

        Asks nothing where none of them has a limit.
        """
        due = tuple(lanes)
        limits = {lane.type: limit for lane in due if (limit := self._routing.max_running(lane.type)) is not None}
        full = self._full(limits)
        if full and self._settle():
            full = self._full(limits)
        self.full = tuple(lane for lane in due if lane.type in full)
        return tuple(lane for lane in due if lane.type not in full)

    def _full(self, limits: Mapping[str, int]) -> set[str]:
        if not limits:
            return set()
        running = self._running()
        return {type_ for type_, limit in limits.items() if running.get(type_, 0) >= limit}
