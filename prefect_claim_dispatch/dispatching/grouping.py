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


Kind = tuple[int, int | None, str]


class Part(NamedTuple):
    """Lanes whose processors want equally many rows in a run, so that one claim of them has one right size.

    With a `max_running`, all of them are of one type, which is counted when it is claimed.
    """

    lanes: tuple[Lane, ...]
    rows_per_run: int
    max_running: int | None = None

    @property
    def kind(self) -> Kind:
        """What lanes that are claimed together have in common."""
        return self.rows_per_run, self.max_running, "" if self.max_running is None else self.lanes[0].type


def _no_limit(_type: str) -> None:
    return None


def parts_of(
    lanes: Iterable[Lane], rows_per_run: Callable[[str], int], max_running: Callable[[str], int | None] = _no_limit
) -> list[Part]:
    """*lanes*, highest priority first, in parts to be claimed one after another.

    A lower priority never comes first; in one priority, the part does whose turn it is or whose lane has waited
    longest. All of one part where they want equally many, so that nothing is claimed in two statements without need;
    a type with a `max_running` is one by itself.
    """
    parts: list[Part] = []
    for _, group in itertools.groupby(lanes, key=attrgetter("priority")):
        by_kind: dict[Kind, Part] = {}
        for lane in group:
            part = Part((lane,), rows_per_run(lane.type), max_running(lane.type))
            before = by_kind.get(part.kind)
            by_kind[part.kind] = part if before is None else before._replace(lanes=(*before.lanes, lane))
        # The kind that the priority before ended with goes on, if there is one, in the same claim; but out of turn it
        # would keep the others waiting for ever.
        last = parts[-1].kind if parts else None
        for kind, part in sorted(by_kind.items(), key=lambda item: (item[1].lanes[0].turn, item[0] != last)):
            if parts and parts[-1].kind == kind:
                parts[-1] = part._replace(lanes=(*parts[-1].lanes, *part.lanes))
            else:
                parts.append(part)
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


class Grouping:
    """What of a claim shares a run, by what each processor says."""

    def __init__(self, routing: Routing, options: LoopOptions) -> None:
        self._routing = routing
        self._slots = options.concurrency
        self._budget = RunBudget(options.runs_per_second)
        self._alone: set[Processor | None] = set()

    def parts(self, lanes: Iterable[Lane]) -> list[Part]:
        """As `parts_of`."""
        return parts_of(lanes, self._most, self._routing.max_running)

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
        budget = min(self._budget.left, self._slots)
        return {
            processor: rows_per_run_for(number, budget) if _is_automatic(processor) else _fixed(processor)
            for processor, number in due.items()
        }

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
