"""An error as its author reads it: where in the author's own code it was raised, without Prefect's frames and ours.

Ten frames of machinery stand before the first line of a processor's in a plain traceback, and all of a batch's are
alike. What is told here quotes no values either, as far as we know of them: see `told`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Generator
from types import TracebackType
from typing import Final, cast

from pydantic import ValidationError

from prefect_claim_dispatch.outcomes import Failed, redacted
from prefect_claim_dispatch.payloads import problems

MAX_TRACEBACK_LENGTH: Final = 8_000
"""Of one error with all that led to it; what is longer is cut in its middle."""

MAX_FRAMES: Final = 100
MAX_CHAINED: Final = 10
MAX_GROUPED: Final = 5

_OURS: Final = "prefect_claim_dispatch.dispatching"
_BETWEEN: Final = frozenset({"prefect", "asyncio", "contextlib", "concurrent", "threading", "anyio"})
_PACKAGE: Final = "prefect_claim_dispatch"

_HEAD: Final = "Traceback (most recent call last):\n"
_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def told(error: BaseException) -> str:
    """*error* and what led to it, each with the frames of its author; redacted as `errors` are, and bounded.

    pydantic's errors quote what they were given, which may be a payload: of them the place and the reason are told.
    """
    try:
        text = "".join(_chained(error))
    except Exception:  # noqa: BLE001 - an error may be of any shape, and to tell of it must not be another
        text = line_of(error)
    text = redacted(text, len(text) + 1).rstrip("\n")
    if len(text) <= MAX_TRACEBACK_LENGTH:
        return text
    # The end says what was raised, and where.
    head, tail = MAX_TRACEBACK_LENGTH // 4, MAX_TRACEBACK_LENGTH * 3 // 4
    return f"{text[:head]}\n  ... {len(text) - head - tail:,} characters are left out ...\n{text[-tail:]}"


def line_of(error: BaseException) -> str:
    """The class of *error* and its text, redacted."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    message = problems(error) if isinstance(error, ValidationError) else Failed.from_exception(error).message
    return redacted(f"{name}: {message}" if message else name)


def authors(trace: TracebackType | None) -> TracebackType | None:
    """*trace* from where ours end: the author's frames. All of it, if none of it is ours; None, if all of it is."""
    mine = trace
    while mine is not None and not _module(mine).startswith(_OURS):
        mine = mine.tb_next
    if mine is None:
        return trace
    while mine is not None and (_module(mine).startswith(_OURS) or _module(mine).partition(".")[0] in _BETWEEN):
        mine = mine.tb_next
    return mine


class AuthorsFrames(logging.Filter):
    """Has Prefect's loggers tell an error that went through our hands as `told` tells it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record; see above."""
        if record.exc_info:
            kind, error, trace = record.exc_info
            if kind is not None and error is not None and (frames := authors(trace)) is not trace:
                record.exc_text = told(error)
                record.exc_info = (kind, error, frames)
        return True


_FILTER: Final = AuthorsFrames()


def shorten() -> None:
    """Have what Prefect logs of its runs in this process go through `AuthorsFrames`, from now on."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_FILTER)  # once, however often it is added


def _chained(error: BaseException) -> Generator[str]:
    """*error* after what led to it, as Python has it; the first of too many are left out."""
    chain, links = [error], [""]
    while len(chain) < MAX_CHAINED:
        last = chain[-1]
        if _told_elsewhere(last) is not None:
            break
        before = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if before is None or any(before is known for known in chain):
            break
        links[-1] = _CONTEXT if last.__cause__ is None else _CAUSE
        chain.append(before)
        links.append("")
    for one, link in zip(reversed(chain), reversed(links), strict=True):
        yield link
        yield from _alone(one)


def _alone(error: BaseException) -> Generator[str]:
    if (elsewhere := _told_elsewhere(error)) is not None:
        yield elsewhere + "\n"
        return
    frames = authors(error.__traceback__)
    if frames is None and not _is_ours(error):
        frames = error.__traceback__
    if frames is not None:
        yield _HEAD
        yield from traceback.format_tb(frames, limit=-MAX_FRAMES)
    yield line_of(error) + "\n"
    for note in getattr(error, "__notes__", [])[:MAX_CHAINED]:
        yield redacted(str(note), MAX_TRACEBACK_LENGTH // 2) + "\n"
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions[:MAX_GROUPED]:
            yield "".join(f"  | {line}" for line in "".join(_alone(one)).splitlines(keepends=True))


def _told_elsewhere(error: BaseException) -> str | None:
    """What an error of ours stands for, as it was told where it was raised: in another process, or in the log."""
    text = getattr(error, "trace_told", None)
    return text if isinstance(text, str) else None


def _is_ours(error: BaseException) -> bool:
    """Whether *error* is what we make of an end, so that where we raise it says nothing."""
    return type(error).__module__.partition(".")[0] == _PACKAGE or isinstance(error, TimeoutError)


def _module(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", ""))
