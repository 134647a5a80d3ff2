"""When an action becomes due: at an instant, or after a delay on the database's clock; checked.

Instants must be aware and are kept in UTC. An instant in a gap or fold of daylight saving time is what `zoneinfo` and
``fold`` make of it: 02:30 in the night that has no 02:30 is read with the offset of before, so it is 03:30.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from prefect_claim_dispatch.errors import InvalidInstantError

MIN_INSTANT: Final = datetime(1, 1, 2, tzinfo=UTC)
MAX_INSTANT: Final = datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)
MAX_DELAY: Final = timedelta(days=36_525)

EligibleAt = datetime | timedelta | str
Eligible = EligibleAt | Callable[[], EligibleAt | None]


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant in UTC, or a delay counted by the database when it inserts; neither means at once."""

    end_at: datetime | None = None
    delay: timedelta | None = None

    @property
    def delay_seconds(self) -> float:
        """The delay as statements bind it; 0 when there is none."""
        return self.delay.total_seconds() if self.delay else 0.0


AT_ONCE: Final = Moment()


def moment_of(end_at: Eligible | None, delay: timedelta | None) -> Moment | Callable[[], Any]:
    """What `publish` was given, checked; a callable *end_at* is left to be called at the last moment.

    Raises:
        InvalidInstantError: both are given, or one of them can't be used.
    """
    if end_at is not None and delay is not None:
        msg = "both end_at and delay are given; pass end_at for an instant, or delay for a time from now"
        raise InvalidInstantError(msg)
    if delay is not None:
        return Moment(delay=checked_delay(delay))
    return end_at if callable(end_at) else moment(end_at)


def moment(value: Any) -> Moment:
    """*value* as a moment: an aware datetime, ISO text with an offset, a timedelta from now, or None for at once.

    Raises:
        InvalidInstantError: it is naive, out of range, negative, or something else.
    """
    match value:
        case None:
            return AT_ONCE
        case timedelta():
            return Moment(delay=checked_delay(value))
        case datetime():
            return Moment(end_at=_checked_instant(value))
        case str():
            return Moment(end_at=_checked_instant(_parsed(value)))
        case _:
            kind = type(value).__name__
            msg = f"end_at must be an aware datetime, ISO text with an offset, a timedelta or a callable, got {kind}"
            raise InvalidInstantError(msg)


def checked_delay(delay: Any) -> timedelta:
    """*delay*, if it is a timedelta from zero to `MAX_DELAY`.

    Raises:
        InvalidInstantError: it is not.
    """
    if not isinstance(delay, timedelta):
        msg = f"delay must be a timedelta, got {type(delay).__name__}; write timedelta(seconds=...)"
        raise InvalidInstantError(msg)
    if not timedelta(0) <= delay <= MAX_DELAY:
        msg = f"delay must be from zero to {MAX_DELAY.days} days, got {delay}; pass end_at for an instant"
        raise InvalidInstantError(msg)
    return delay


def duration(delay: timedelta | None, **parts: float) -> timedelta:
    """*delay*, or the timedelta that *parts* make; checked.

    Raises:
        InvalidInstantError: both or neither are given, or a part is no finite number.
    """
    for name, amount in parts.items():
        if isinstance(amount, bool) or not isinstance(cast("object", amount), int | float):
            msg = f"after({name}) makes no duration: it must be a number, got {type(amount).__name__}; pass 5 or 0.5"
            raise InvalidInstantError(msg)
    given = {name: amount for name, amount in parts.items() if amount != 0}
    if delay is not None and given:
        msg = f"after() takes a timedelta or parts, got both; drop {', '.join(given)}"
        raise InvalidInstantError(msg)
    if delay is not None:
        return checked_delay(delay)
    try:
        return checked_delay(timedelta(**given))
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidInstantError):
            raise
        msg = f"after({', '.join(given)}) makes no duration: {error}; pass finite numbers"
        raise InvalidInstantError(msg) from error


def _parsed(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        msg = f"end_at {text[:60]!r} is no ISO 8601 instant; write 2026-01-31T12:00:00+00:00"
        raise InvalidInstantError(msg) from None


def _offset(instant: datetime) -> timedelta | None:
    try:
        return instant.utcoffset()
    except Exception as error:
        kind = type(instant.tzinfo).__name__
        msg = f"end_at has a {kind} that tells no offset ({type(error).__name__}); use ZoneInfo or UTC"
        raise InvalidInstantError(msg) from error


def _checked_instant(instant: datetime) -> datetime:
    if _offset(instant) is None:
        msg = (
            f"end_at {instant.isoformat()} is naive; give it a time zone, "
            "as in datetime.now(UTC) or datetime(..., tzinfo=ZoneInfo('Europe/Berlin'))"
        )
        raise InvalidInstantError(msg)
    try:
        in_utc = instant.astimezone(UTC)
    except OverflowError:
        in_utc = None
    if in_utc is None or not MIN_INSTANT <= in_utc <= MAX_INSTANT:
        msg = f"end_at {instant.isoformat()} is out of range; it must be from 0001-01-02 to 9999-12-30 in UTC"
        raise InvalidInstantError(msg)
    return in_utc
