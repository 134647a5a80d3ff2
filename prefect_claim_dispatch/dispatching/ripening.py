"""Ripening: which due lanes wait a little longer, by the `linger` of their processors, so that their runs are full."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.registrations import Processor

MOST_LANES = 16
"""Lanes of one processor that are counted, each by a statement of its own; of any more, it is known that they have
one."""


class Ripening:
    """Leaves out what is due but need not go yet. Nothing is claimed for it: what waits, waits in the table.

    A processor's lanes are ripe together, when one of them is as old as the processor lingers: then all that is due
    goes, and no row has waited longer than that for company. Before, as many go as make full runs. *count* looks at no
    more due actions of some lanes than it is told, which is what the slots could start.
    """

    def __init__(self, routing: Routing, count: Callable[[Sequence[Lane], int], int], *, slots: int) -> None:
        self._routing = routing
        self._count = count
        self._slots = slots
        self._full: dict[Processor, int] = {}
        self.seconds_left = math.inf
        """Until the first of what was left out is ripe by its age; from the survey that `ripe` was told of."""

    def ripe(self, lanes: Iterable[Lane], now: datetime) -> tuple[Lane, ...]:
        """Those of *lanes*, due at *now*, that need not wait, in their order. Asks nothing where nobody lingers."""
        due = tuple(lanes)
        self._full, self.seconds_left = {}, math.inf
        lingering = defaultdict[Processor, list[Lane]](list)
        for lane in due:
            processor = self._routing.match(lane.type)
            if processor is not None and processor.linger is not None:
                lingering[processor].append(lane)
        waits = {processor for processor, of_it in lingering.items() if not self._is_ripe(processor, of_it, now)}
        return tuple(lane for lane in due if self._routing.match(lane.type) not in waits) if waits else due

    def at_most(self, type_: str) -> int | None:
        """How many actions of that type's processor make full runs; None where it need not look at that."""
        processor = self._routing.match(type_)
        return None if processor is None else self._full.get(processor)

    def _is_ripe(self, processor: Processor, lanes: Sequence[Lane], now: datetime) -> bool:
        left = min(lane.end_at for lane in lanes) + (processor.linger or timedelta(0)) - now
        if left <= timedelta(0):
            return True
        rows = processor.rows_per_run if isinstance(processor.rows_per_run, int) else 1
        counted, others = lanes[:MOST_LANES], len(lanes[MOST_LANES:])
        full = (self._count(counted, self._slots * rows) + others) // rows * rows
        if full:
            self._full[processor] = full
        self.seconds_left = min(self.seconds_left, left.total_seconds())
        return full > 0
