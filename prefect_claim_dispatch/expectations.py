"""What a test expects of published actions: filters, checked before any SQL, and why an action does not fit them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypedDict, cast

from prefect_claim_dispatch.actions import RESERVED_META, RESERVED_RULES, ActionStatus
from prefect_claim_dispatch.errors import ClaimDispatchError, ConfigurationError
from prefect_claim_dispatch.moments import moment
from prefect_claim_dispatch.payloads import Payload, encode_payload
from prefect_claim_dispatch.rows import ActionRow
from prefect_claim_dispatch.selecting import Statuses, statuses_of

SHOWN_ACTIONS: Final = 12
SHOWN_TYPES: Final = 8
LINE_WIDTH: Final = 200
MAX_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAction:
    """One action as it stands in the table, for a test to look at. Instants are aware and in UTC.

    `payload` is without the reserved keys; they are in `rules` and `meta`. What somebody else wrote there and is no
    JSON object is shown as it is.
    """

    id: int
    type: str
    payload: Any
    meta: Any
    rules: Any
    end_at: datetime | None
    priority: int
    idempotency_key: str | None
    ordering_key: str | None
    status: ActionStatus
    fail_count: int
    errors: tuple[Mapping[str, Any], ...]


def published_action(row: ActionRow) -> PublishedAction:
    """The action of *row*."""
    payload, meta, rules = row.payload, {}, None
    if isinstance(payload, dict):
        payload = dict(cast("dict[str, Any]", payload))
        rules, meta = payload.pop(RESERVED_RULES, None), payload.pop(RESERVED_META, {})
    return PublishedAction(
        id=row.id,
        type=row.type,
        payload=payload,
        meta=meta,
        rules=rules,
        end_at=row.end_at,
        priority=row.priority,
        idempotency_key=row.idempotency_key,
        ordering_key=row.ordering_key,
        status=row.status,
        fail_count=row.fail_count,
        errors=row.errors,
    )


class Wanted(TypedDict, total=False):
    """Which published actions are meant; what is left out does not matter.

    ``__contains``: at least these members, at any depth, as PostgreSQL's ``@>`` has it; without it: exactly this.
    Payloads are given as to `publish`. ``end_at__from`` and ``end_at__until`` are bounds that still belong to it. None
    for a key or for rules: there are none.
    """

    status: Statuses
    payload: Payload
    payload__contains: Payload
    meta: Payload
    meta__contains: Payload
    rules: Mapping[str, Any] | None
    end_at: datetime
    end_at__from: datetime
    end_at__until: datetime
    priority: int
    idempotency_key: str | None
    ordering_key: str | None


class WantedOfType(Wanted, total=False):
    """As `Wanted`; and ``type``, exactly."""

    type: str


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        msg = f"filter {name!r} must be text, got {type(value).__name__}"
        raise ConfigurationError(msg)
    return value


def _key(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"filter {name!r} must be an integer, got {type(value).__name__}"
        raise ConfigurationError(msg)
    return value


def _statuses(name: str, value: Any) -> tuple[ActionStatus, ...]:
    try:
        statuses = statuses_of(value)
    except TypeError:
        msg = f"filter {name!r} must be a status or several, got {type(value).__name__}"
        raise ConfigurationError(msg) from None
    if not statuses:
        msg = f"filter {name!r} names no status, so no action would fit; leave it out"
        raise ConfigurationError(msg)
    return statuses


def _object(name: str, value: Any) -> Any:
    try:
        return json.loads(encode_payload(value, max_bytes=MAX_BYTES))
    except ClaimDispatchError as error:
        msg = f"filter {name!r} can't be what was published: {error}"
        raise ConfigurationError(msg) from error


def _rules(name: str, value: Any) -> Any:
    return None if value is None else _object(name, value)


def _instant(name: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        msg = f"filter {name!r} must be an aware datetime, got {type(value).__name__}"
        raise ConfigurationError(msg)
    return cast("datetime", moment(value).end_at)


def _holds(actual: Any, wanted: Any, *, exactly: bool) -> bool:
    """Whether the JSON *actual* is *wanted*, or has all of it; true and 1 are not the same, in JSON."""
    if isinstance(wanted, dict):
        if not isinstance(actual, dict) or (exactly and len(cast("Any", actual)) != len(cast("Any", wanted))):
            return False
        members, parts = cast("dict[str, Any]", actual), cast("dict[str, Any]", wanted)
        return all(key in members and _holds(members[key], part, exactly=exactly) for key, part in parts.items())
    if isinstance(wanted, list):
        if not isinstance(actual, list):
            return False
        items, pieces = cast("list[Any]", actual), cast("list[Any]", wanted)
        if exactly:
            pairs = zip(items, pieces, strict=False)
            return len(items) == len(pieces) and all(_holds(item, piece, exactly=True) for item, piece in pairs)
        return all(any(_holds(item, piece, exactly=False) for item in items) for piece in pieces)
    return isinstance(actual, bool) == isinstance(wanted, bool) and actual == wanted


@dataclass(frozen=True, slots=True)
class _Filter:
    checked: Callable[[str, Any], Any]
    fits: Callable[[PublishedAction, Any], bool]


_FILTERS: Final[Mapping[str, _Filter]] = {
    "type": _Filter(_text, lambda action, wanted: action.type == wanted),
    "status": _Filter(_statuses, lambda action, wanted: action.status in wanted),
    "payload": _Filter(_object, lambda action, wanted: _holds(action.payload, wanted, exactly=True)),
    "payload__contains": _Filter(_object, lambda action, wanted: _holds(action.payload, wanted, exactly=False)),
    "meta": _Filter(_object, lambda action, wanted: _holds(action.meta, wanted, exactly=True)),
    "meta__contains": _Filter(_object, lambda action, wanted: _holds(action.meta, wanted, exactly=False)),
    "rules": _Filter(_rules, lambda action, wanted: _holds(action.rules, wanted, exactly=True)),
    "end_at": _Filter(_instant, lambda action, wanted: action.end_at == wanted),
    "end_at__from": _Filter(_instant, lambda action, wanted: action.end_at is not None and action.end_at >= wanted),
    "end_at__until": _Filter(_instant, lambda action, wanted: action.end_at is not None and action.end_at <= wanted),
    "priority": _Filter(_number, lambda action, wanted: action.priority == wanted),
    "idempotency_key": _Filter(_key, lambda action, wanted: action.idempotency_key == wanted),
    "ordering_key": _Filter(_key, lambda action, wanted: action.ordering_key == wanted),
}


class Expectation:
    """Filters that were checked; see `Wanted`."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        """Check *wanted*.

        Raises:
            ConfigurationError: a filter that does not exist, or a value that no action can have.
            InvalidInstantError: an instant is naive or out of range.
        """
        unknown = sorted(set(wanted) - set(_FILTERS))
        if unknown:
            msg = f"no filter is called {', '.join(map(repr, unknown))}; there are {', '.join(_FILTERS)}"
            raise ConfigurationError(msg)
        self._wanted = {name: _FILTERS[name].checked(name, value) for name, value in wanted.items()}

    def differences(self, action: PublishedAction) -> tuple[str, ...]:
        """The names of the filters that *action* does not fit; none when it is one of those that are meant."""
        return tuple(name for name, wanted in self._wanted.items() if not _FILTERS[name].fits(action, wanted))

    def __str__(self) -> str:
        return ", ".join(f"{name}={_shown(wanted)}" for name, wanted in self._wanted.items()) or "any"


def explanation(expectation: Expectation, count: int | None, actions: Sequence[PublishedAction]) -> str:
    """What was expected and what *actions*, all that there are, came to: 20 lines at most, the nearest misses first."""
    judged = [(expectation.differences(action), action) for action in actions]
    fitting = sum(not differences for differences, _ in judged)
    lines = [f"expected {_number_of(count)}, found {fitting:,}: {expectation}"]
    nearest = sorted(judged, key=lambda pair: ("type" in pair[0], len(pair[0]), -pair[1].id))
    lines += [_line(action, differences) for differences, action in nearest[:SHOWN_ACTIONS]]
    if len(actions) > SHOWN_ACTIONS:
        types = Counter(action.type for action in actions).most_common()
        told = [f"{type_} ({number:,})" for type_, number in types[:SHOWN_TYPES]]
        more = [f"{len(types) - SHOWN_TYPES:,} more types"] if len(types) > SHOWN_TYPES else []
        lines.append(f"... and {len(actions) - SHOWN_ACTIONS:,} more; in all: {', '.join([*told, *more])}")
    lines.append(_advice(count, fitting, len(actions)))
    return "\n".join(line if len(line) <= LINE_WIDTH else f"{line[: LINE_WIDTH - 1]}…" for line in lines)


def _number_of(count: int | None) -> str:
    return "at least 1 action" if count is None else f"exactly {count:,} action{'' if count == 1 else 's'}"


def _line(action: PublishedAction, differences: Sequence[str]) -> str:
    verdict = f"differs in {', '.join(differences)}" if differences else "fits"
    keys = [
        f"{name}={_shown(value)}"
        for name, value in (
            ("idempotency_key", action.idempotency_key),
            ("ordering_key", action.ordering_key),
            ("meta", action.meta or None),
            ("rules", action.rules),
        )
        if value is not None
    ]
    end_at = "?" if action.end_at is None else action.end_at.isoformat()
    facts = [f"end_at={end_at}", f"priority={action.priority}", *keys, f"payload={_shown(action.payload)}"]
    return f"  #{action.id} {action.type} {action.status}, {verdict}: {' '.join(facts)}"


def _advice(count: int | None, fitting: int, present: int) -> str:
    if not present:
        return "The table is empty, as this bind sees it; what another transaction published shows after its commit."
    if count is not None and fitting > count:
        return "More were published than expected; narrow the filters, or look for what publishes twice."
    return "Publish what is missing, or correct the filters that are named."


def _shown(value: Any) -> str:
    match value:
        case datetime():
            return value.isoformat()
        case tuple():
            return "|".join(str(status) for status in cast("tuple[ActionStatus, ...]", value))
        case _:
            return json.dumps(value, ensure_ascii=False)
