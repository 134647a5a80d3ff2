"""What a run in another process came to, as plain data: it has to survive the way back, whatever was raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeGuard, cast

from prefect.client.schemas.objects import State

from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.fences import Key
from prefect_claim_dispatch.outcomes import (
    Cancel,
    Failed,
    Outcome,
    Processed,
    Snooze,
    Unprocessable,
    redacted,
)

MARK: Final = "claim-dispatch told"
SETTLED: Final = "settled"

Told = Mapping[str, Any]
"""The outcomes of the rows that had one, by the text of their fence; those in ``settled`` are settled already."""


class AttemptFailedError(Exception):
    """The run failed; the message says why, and *told* what became of each of its rows.

    In place of what was raised, which may be impossible to pickle, or huge; *trace_told* is its traceback, as text.
    """

    def __init__(self, message: str, told: Told, trace_told: str | None = None) -> None:
        super().__init__(message, told)
        self.told = told
        self.trace_told = trace_told

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"AttemptFailedError({self})"


def told(outcomes: Mapping[Key, Outcome], settled: Iterable[Key] = ()) -> Told:
    """*outcomes* as plain data."""
    rows = {_text(key): _plain(outcome) for key, outcome in outcomes.items()}
    return {MARK: rows, SETTLED: [_text(key) for key in settled]}


def told_of(works: Iterable[Work], others: Mapping[Key, Outcome]) -> Told:
    """What became of *works*, and *others* beside them."""
    outcomes, settled = dict(others), list[Key]()
    for work in works:
        key = work.reference.key
        if work.outcome is not None:
            outcomes[key] = work.outcome
        elif work.error is not None:
            outcomes[key] = Failed.from_exception(work.error)
        if work.action.lease is not None and work.action.lease.settled:
            settled.append(key)
    return told(outcomes, settled)


def heard(state: State[Any]) -> Told | None:
    """What a run told that ended in *state*; None where it could not tell anything."""
    data = getattr(state.data, "result", state.data)
    if isinstance(data, AttemptFailedError):
        data = data.told
    return data if _is_told(data) else None


def outcome_in(told: Told, key: Key) -> Outcome | None:
    """The outcome of the row *key*."""
    plain = told[MARK].get(_text(key))
    try:
        return None if plain is None else _meaning(plain)
    except Exception as error:  # noqa: BLE001 - what one row was told must not keep the others from hearing
        return Failed.from_exception(error)


def is_settled_in(told: Told, key: Key) -> bool:
    """Whether the row *key* was settled in a transaction of its processor's."""
    return _text(key) in told[SETTLED]


def _is_told(data: object) -> TypeGuard[Told]:
    return isinstance(data, dict) and MARK in cast("dict[str, Any]", data)


def _text(key: Key) -> str:
    return f"{key[0]}:{key[1]}"


def _plain(outcome: Outcome) -> list[Any]:
    try:
        return _told(outcome)
    except Exception as error:  # noqa: BLE001 - an outcome that can't be told is that row's failure, and no other's
        return _told(Failed.from_exception(error))


def _told(outcome: Outcome) -> list[Any]:
    match outcome:
        case Processed():
            return ["processed"]
        case Snooze():
            return ["snoozed", outcome.delay.total_seconds(), redacted(outcome.reason)]
        case Cancel():
            return ["cancelled", redacted(outcome.reason)]
        case Unprocessable():
            return ["unprocessable", outcome.error_type, outcome.message]
        case Failed():
            return ["failed", redacted(outcome.error_type), outcome.message]
        case _:
            return ["failed", type(outcome).__name__, "no outcome of a processor"]


def _meaning(plain: list[Any]) -> Outcome:
    match plain:
        case ["processed"]:
            return Processed()
        case ["snoozed", float(seconds), str(reason)]:
            return Snooze(timedelta(seconds=seconds), reason)
        case ["cancelled", str(reason)]:
            return Cancel(reason)
        case ["unprocessable", str(error_type), str(message)]:
            return Unprocessable(error_type=error_type, message=message)
        case ["failed", str(error_type), str(message)]:
            return Failed(error_type=error_type, message=message)
        case _:
            message = "a worker process of another version told an outcome that is not known here"
            return Failed(error_type="StrangeAnswer", message=message)
