"""What the log of a batch's run says of each row that failed; a run for each has its own log and traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prefect_claim_dispatch.dispatching.batches import Batch
from prefect_claim_dispatch.dispatching.tracebacks import line_of, told
from prefect_claim_dispatch.dispatching.work import Work

MOST_TOLD: Final = 20
"""Rows of one try whose errors are logged: a batch has up to ten thousand, and all of them may have failed."""


def tell_failures(batch: Batch, say: Callable[..., None]) -> None:
    """Log by *say* which rows of *batch* failed in its last try, each with its error and traceback.

    Those that failed together, by one exception, are told together. A batch of one is left to whoever runs it.
    """
    failed = batch.failed
    if not failed or len(batch.works) == 1:
        return
    for error, works in _by_error(failed[:MOST_TOLD]):
        text, line = told(error), line_of(error)
        # Not once more where there is no traceback to tell.
        say("%s failed: %s", _names(works), line if text == line else f"{line}\n{text}")
    if len(failed) > MOST_TOLD:
        say("%s more failed; the error of each is in its row's errors", f"{len(failed) - MOST_TOLD:,}")


def _by_error(failed: Iterable[Work]) -> Iterator[tuple[BaseException, list[Work]]]:
    works: dict[int, tuple[BaseException, list[Work]]] = {}
    for work in failed:
        if work.error is not None:
            works.setdefault(id(work.error), (work.error, []))[1].append(work)
    return iter(works.values())


def _names(works: Iterable[Work]) -> str:
    return ", ".join(work.reference.name for work in works)
