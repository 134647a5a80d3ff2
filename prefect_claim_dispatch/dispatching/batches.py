"""The batch lane: one run for many actions of one processor, each with its own fence, outcome and settlement.

Two shapes, told apart by the processor's signature. Called row by row, each action is settled when its own call is
over. Called together, one call takes them all and may answer for each. A try of Prefect's calls only those that have
no outcome yet, so that retries never repeat what is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, cast

from prefect.client.schemas.objects import State
from prefect.states import Completed

from prefect_claim_dispatch.dispatching.calling import called, called_async
from prefect_claim_dispatch.dispatching.returns import Returned, RunFailedError
from prefect_claim_dispatch.dispatching.work import ActionReference, Work, as_exception
from prefect_claim_dispatch.outcomes import Cancel, Outcome, Processed, Snooze

TOLD_IDS = 10
"""How many of those that failed a log line names."""

_ANSWERS = (type(None), State, Snooze, Cancel, BaseException)

_WORDS: dict[type[Outcome], str] = {Processed: "processed", Snooze: "snoozed", Cancel: "cancelled"}


class BatchFailedError(Exception):
    """Actions of a batch failed: Prefect shall call them again, or show that none is left that did not."""

    @property
    def trace_told(self) -> str:
        """No more than it says itself: what each of them raised is in the log already."""
        return f"{type(self).__name__}: {self}"


class BatchAnswerError(Exception):
    """A processor that takes rows together answered something that is no outcome for each of them."""


class Batch:
    """Works of one processor that share a run; of each, the phase, the outcome and the verdict are its own.

    The processor's time limit is of each call, unless *has_limit* is False.
    """

    def __init__(self, works: Sequence[Work], *, has_limit: bool = True) -> None:
        self.works = tuple(works)
        self.processor = works[0].processor
        self._limit = self.processor.call_limit if has_limit else None

    @cached_property
    def reference(self) -> ActionReference:
        """What Prefect gets to see: of several, the type, how many, and the first and the last."""
        first = self.works[0].reference
        if len(self.works) == 1:
            return first
        ids = [work.action.id for work in self.works]
        types = {work.action.type for work in self.works}
        type_ = types.pop() if len(types) == 1 else self.processor.pattern
        name = f"{type_} × {len(ids)} (#{min(ids)} to #{max(ids)})"  # noqa: RUF001 - a sign for people
        return ActionReference(name=name, id=first.id, claim_count=first.claim_count)

    @property
    def has_begun(self) -> bool:
        """Whether the processor was called for any of them."""
        return any(work.has_begun for work in self.works)

    @property
    def begun_at(self) -> float | None:
        """When the processor was called for the latest of them; None before."""
        return max((work.begun_at for work in self.works if work.begun_at is not None), default=None)

    def run(self, run_id: str, *, is_last_try: bool = True) -> Any:
        """Call a sync processor for all that have no outcome yet; returns what Prefect takes for the final state.

        Raises:
            BatchFailedError: some failed and Prefect will try again, or all did. Of a single one, its own error.
        """
        if self.processor.takes_rows_together:
            self._call_together(run_id)
        else:
            for work in self.works:
                if work.outcome is None:
                    try:
                        _finish(work, work.attempt(run_id, self._limit))
                    except Exception:  # noqa: BLE001, S112 - noted by the work; the others are to be called
                        continue
        return self._ending(is_last_try=is_last_try)

    async def run_async(self, run_id: str, *, is_last_try: bool = True) -> Any:
        """As `run`, for an async processor: row by row, one after another."""
        if self.processor.takes_rows_together:
            await self._call_together_async(run_id)
        else:
            for work in self.works:
                if work.outcome is None:
                    try:
                        _finish(work, await work.attempt_async(run_id, self._limit))
                    except Exception:  # noqa: BLE001, S112 - as above
                        continue
        return self._ending(is_last_try=is_last_try)

    @property
    def is_wanted(self) -> bool:
        """Whether any of them is still to be done here."""
        return any(work.is_wanted for work in self.works)

    def postponed(self, snooze: Snooze) -> Any:
        """Have them done later, as they may not be called now; returns what Prefect takes for the final state.

        Raises:
            BatchFailedError: some failed in an earlier try of this run, and count as failed. Of a single one, its own.
        """
        for work in self.works:
            work.postpone(snooze)
        return self._ending(is_last_try=True)

    def conclude(self, ended: str) -> None:
        """Settle what is left when the run is over. What was not called is to be given back."""
        for work in self.works:
            work.conclude(ended)

    @property
    def summary(self) -> str:
        """One line on how they ended: counts, and the ids of those that failed; no payload, and no error's text."""
        counts = Counter(end_of(work) for work in self.works)
        line = ", ".join(f"{word} {number:,}" for word, number in sorted(counts.items()))
        failed = [f"#{work.action.id}" for work in self.failed]
        more = f" and {len(failed) - TOLD_IDS:,} more" if len(failed) > TOLD_IDS else ""
        return f"{line} ({', '.join(failed[:TOLD_IDS])}{more})" if failed else line

    @property
    def failed(self) -> list[Work]:
        """Those whose last call failed."""
        return [work for work in self.works if work.outcome is None and work.error is not None]

    def _call_together(self, run_id: str) -> None:
        works = self._begun(run_id)
        if not works:
            return
        try:
            answer = called(
                self.processor.function, _columns(works), self._limit, limit=self.processor.time_limit, each=True
            )
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the flow and all the others
            _fail(works, error)
        else:
            self._take(works, answer)

    async def _call_together_async(self, run_id: str) -> None:
        works = self._begun(run_id)
        if not works:
            return
        try:
            answer = await called_async(
                self.processor.function, _columns(works), self._limit, limit=self.processor.time_limit, each=True
            )
        except BaseException as error:  # noqa: BLE001 - as above
            _fail(works, error)
        else:
            self._take(works, answer)

    def _begun(self, run_id: str) -> list[Work]:
        return [work for work in self.works if work.outcome is None and work.begin(run_id)]

    def _take(self, works: Sequence[Work], answer: Returned | list[Returned | BaseException]) -> None:
        """Take *answer*, one for all of *works* or one for each; what is wrong with one of them is that one's own."""
        came = answer if isinstance(answer, list) else [answer] * len(works)
        problem = _problem(answer, len(works))
        if problem is not None:
            came = [self._strange(problem, len(works))] * len(works)
        for work, one in zip(works, came, strict=True):
            if isinstance(one, Returned) and not _is_answer(one):
                _take_one(work, self._strange(f"answered {type(one.value).__name__} for a row", len(works)))
            else:
                _take_one(work, one)

    def _strange(self, problem: str, wanted: int) -> BatchAnswerError:
        return BatchAnswerError(
            f"processor {self.processor.pattern!r} {problem}; return None, or for each of the {wanted} rows "
            "None, a Snooze, a Cancel or an exception"
        )

    def _ending(self, *, is_last_try: bool) -> Any:
        failed = self.failed
        if len(self.works) == 1:
            # A batch of one ends as a run of one does.
            if failed:
                raise _visible(failed[0])
            return self.works[0].shown()
        if not failed:
            return None if self.has_begun else self.works[0].shown()
        if is_last_try and any(work.outcome is not None for work in self.works):
            return Completed(name="CompletedWithFailures", message=self.summary)
        # Chained, for conditions of retrying that look at what was raised.
        raise BatchFailedError(self.summary) from _visible(failed[0])


def _columns(works: Sequence[Work]) -> dict[str, Any]:
    return {name: [work.arguments[name] for work in works] for name in works[0].arguments}


def _fail(works: Sequence[Work], error: BaseException) -> None:
    """Note *error* of all; what ends the run from outside goes on."""
    visible = [work.fail(error) for work in works][-1]
    if not isinstance(visible, Exception):
        raise visible


def _visible(work: Work) -> Exception:
    assert work.error is not None  # noqa: S101 - it failed
    return as_exception(work.error)


def _finish(work: Work, returned: Returned | None) -> None:
    if returned is not None:
        work.finish(returned)


def _take_one(work: Work, came: Returned | BaseException) -> None:
    error = came.value if isinstance(came, Returned) else came
    if isinstance(error, BaseException):
        work.fail(error)
        return
    with suppress(RunFailedError):  # noted by the work
        work.finish(cast("Returned", came))


def _problem(answer: Returned | list[Returned | BaseException], wanted: int) -> str | None:
    if isinstance(answer, list):
        return None if len(answer) == wanted else f"answered {len(answer)} outcomes for {wanted} rows"
    value: Any = answer.value
    return None if value is None or isinstance(value, State) else f"answered {type(value).__name__}"


def _is_answer(came: Returned) -> bool:
    """Whether it is what a row may be answered. What was waited for may have come to anything, as a call's own may."""
    return came.was_open or isinstance(came.value, _ANSWERS)


def end_of(work: Work) -> str:
    """What came of it so far, in one word."""
    if work.outcome is not None:
        return _WORDS.get(type(work.outcome), "failed")
    return "failed" if work.error is not None else "not started"


Workload = Work | Batch
"""What one run does: the work of one action, or of a batch."""
