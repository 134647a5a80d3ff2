"""Grouping: how many rows to claim at a time, and which of them share a run.

Nothing is counted in the table for it. How many are due is inferred from what a claim brought.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import Lane, RawAction
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.registrations import Processor

MOST_AUTOMATICALLY = 500
"""Rows in a run of ``rows_per_run="auto"``: more would save the server little, and be a long line in one run."""


class Size(NamedTuple):
    """How many rows a processor wants at a time: what lanes that are claimed in one statement have in common.

    *at_most*: in one claim; None for as many as its slots can start. *apart* is whatever it shares with no others: the
    type, where a `max_running` is counted for it, or the pattern of a processor that waits for full runs.
    """

    rows_per_run: int
    max_running: int | None = None
    at_most: int | None = None
    apart: str = ""


class Part(NamedTuple):
    """Lanes whose processors want equally many rows, so that one claim of them has one right size."""

    lanes: tuple[Lane, ...]
    size: Size


def parts_of(lanes: Iterable[Lane], size_of: Callable[[str], Size]) -> list[Part]:
    """*lanes*, highest priority first, in parts to be claimed one after another, by the size that each type wants.

    A lower priority never comes first; in one priority, the part does whose turn it is or whose lane has waited
    longest. All of one part where they want equally many, so that nothing is claimed in two statements without need.
    """
    parts: list[Part] = []
    for _, group in itertools.groupby(lanes, key=attrgetter("priority")):
        by_size: dict[Size, list[Lane]] = {}
        for lane in group:
            by_size.setdefault(size_of(lane.type), []).append(lane)
        # The size that the priority before ended with goes on, if there is one, in the same claim; but out of turn it
        # would keep the others waiting for ever.
        last = parts[-1].size if parts else None
        for size, of_size in sorted(by_size.items(), key=lambda item: (item[1][0].turn, item[0] != last)):
            if parts and parts[-1].size == size:
                parts[-1] = Part((*parts[-1].lanes, *of_size), size)
            else:
                parts.append(Part(tuple(of_size), size))
    return parts


def rows_per_run_for(due: int, budget: float, most: int = MOST_AUTOMATICALLY) -> int:
    """How many of *due* rows share a run, if *budget* runs may be started for them now; *most* at most.

    One for each while the budget lasts; then as many as make the runs few enough. No row waits for the budget: with
    none left, they go together.
    """
    return min(most, max(1, math.ceil(due / max(1.0, budget))))


class RunBudget:
    """Visible runs that may be started now: *per_second* of them, and no more than a second's worth is saved up."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = elapsed_clock()

    @property
    def left(self) -> float:
        """Runs that may be started now; negative, when more were started than the server should see."""
        now = elapsed_clock()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left

    def spend(self, runs: int) -> None:
        """Count *runs* that were started."""
        self._left = self.left - runs


def _no_limit(_type: str) -> None:
    return None


class Grouping:
    """What of a claim shares a run, by what each processor says."""

    def __init__(
        self, routing: Routing, options: LoopOptions, at_most: Callable[[str], int | None] = _no_limit
    ) -> None:
        self._routing = routing
        self._at_most = at_most
        self._soon = options.concurrency + options.read_ahead
        self._budget = RunBudget(options.runs_per_second)
        self._alone: set[Processor | None] = set()

    def parts(self, lanes: Iterable[Lane]) -> list[Part]:
        """As `parts_of`."""
        return parts_of(lanes, self._size)

    def started(self) -> None:
        """Count a run, whatever lane it is of: the server does not mind which."""
        self._budget.spend(1)

    def groups(self, claimed: Sequence[RawAction]) -> list[list[RawAction]]:
        """*claimed*, divided into runs, in the order of the first of each.

        What failed or crashed before runs alone, so that it takes nobody with it.
        """
        matched = {type_: self._routing.match(type_) for type_ in {raw.type for raw in claimed}}
        sizes = self._sizes(Counter(matched[raw.type] for raw in claimed if not raw.was_tried))
        groups: list[list[RawAction]] = []
        opened: dict[Processor | None, list[RawAction]] = {}
        for raw in claimed:
            processor = matched[raw.type]
            group = None if raw.was_tried else opened.get(processor)
            if group is not None and len(group) < sizes[processor]:
                group.append(raw)
                continue
            groups.append([raw])
            if not raw.was_tried:
                opened[processor] = groups[-1]
        self._note_alone(matched, claimed)
        return groups

    def _note_alone(self, matched: Mapping[str, Processor | None], claimed: Sequence[RawAction]) -> None:
        # After an outage a whole backlog may have failed before. Claimed as if they shared runs, hundreds of rows would
        # wait here for a slot, out of reach of other flows.
        tried = Counter(matched[raw.type] for raw in claimed if raw.was_tried)
        number = Counter(matched[raw.type] for raw in claimed)
        self._alone.difference_update(number)
        self._alone.update(processor for processor in tried if 2 * tried[processor] > number[processor])

    def _sizes(self, due: Mapping[Processor | None, int]) -> dict[Processor | None, int]:
        budget = min(self._budget.left, self._soon)
        return {
            processor: rows_per_run_for(number, budget) if _is_automatic(processor) else _fixed(processor)
            for processor, number in due.items()
        }

    def _size(self, type_: str) -> Size:
        rows, max_running, at_most = self._most(type_), self._routing.max_running(type_), self._at_most(type_)
        if max_running is not None:
            return Size(rows, max_running, at_most, type_)
        processor = self._routing.match(type_)
        return Size(rows, None, at_most, "" if processor is None or at_most is None else processor.pattern)

    def _most(self, type_: str) -> int:
        processor = self._routing.match(type_)
        if processor in self._alone:
            return 1
        return MOST_AUTOMATICALLY if _is_automatic(processor) else _fixed(processor)


def _is_automatic(processor: Processor | None) -> bool:
    return processor is not None and processor.rows_per_run == "auto"


def _fixed(processor: Processor | None) -> int:
    rows = None if processor is None else processor.rows_per_run
    return rows if isinstance(rows, int) else 1
