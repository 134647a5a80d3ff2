"""Whatever is published: accepted, it reads back equal through a claim; refused, it leaves no row; on every database.

Each example goes to SQLite and to PostgreSQL by the same door, and both must say and hold the same. The number of
examples is that of the hypothesis profile (see CONTRIBUTING): 500, and 10,000 in ``nightly``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, update

from prefect_claim_dispatch import Draft, Publisher, Receipt, claiming, engines, publish, publish_many
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.errors import ClaimDispatchError
from tests.kit.tables import LEASE, TABLE, row

EXAMPLES = max(500, settings().max_examples)
SOME_TIME = datetime(2020, 1, 1, tzinfo=UTC)

# What databases, JSON, arrays of SQL or drivers might take for something else.
HOSTILE_TEXTS = st.sampled_from(
    [
        *("", " ", "a b", "NULL", "null", "\\", "\\\\", '"', "'", "'; DROP TABLE action_logs; --", "{}", "{a,b}", "%s"),
        *(
            "%(type)s",
            ":type",
            "$1",
            "\\u0000",
            "\\ud800",
            "\\x00",
            "\t\r\n\x0b\x1b",
            "\x7f",
            "\x85",
            "\u2028",
            "\ufeff",
        ),
        *("\u202e", "\uffff", "\ue000", "e\u0301", "\u00e9", "\U0001f468\u200d\U0001f469", "\U0010ffff", "infinity"),
        *("2026-01-01", "1e5", "0x1", "true", "__rules", "__meta", "__proto__", "x" * 255, "\u20ac" * 120),
    ]
)
FORBIDDEN_TEXTS = st.sampled_from(["\x00", "a\x00b", "\ud800", "\udfff", "\ud83d\ude00"[::-1], "x" * 300])
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12) | HOSTILE_TEXTS
ANY_TEXTS = st.integers(0, 9).flatmap(lambda die: FORBIDDEN_TEXTS if die == 0 else TEXTS)
NUMBERS = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -0.0, 2**53 + 1, 2**63, -(2**63), 10**639, 1e16, 1e22, 1e23, 5e-324, 1.7976931348623157e308])
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
FORBIDDEN = st.sampled_from(
    [math.nan, math.inf, -math.inf, 10**640, b"", {1}, object(), Decimal("NaN"), "\x00", ["\ud800"], {1: 1}, {None: 1}]
)
JSON_KEYS = TEXTS.filter(lambda key: key not in {"__rules", "__meta"})
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


def nested(levels: int, leaf: Any) -> dict[str, Any]:
    value: Any = leaf
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return {"nested": value}


DOCUMENTS = st.integers(0, 19).flatmap(
    lambda die: (
        st.builds(nested, st.integers(95, 101), SCALARS)
        if die == 0
        else st.dictionaries(JSON_KEYS | st.sampled_from(["__rules"]), FORBIDDEN | VALUES, max_size=3)
        if die == 1
        else st.dictionaries(JSON_KEYS, VALUES, max_size=5)
    )
)
INSTANTS = (
    st.datetimes(timezones=st.just(UTC))
    | st.datetimes(timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))))
    | st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.timezones())  # noqa: DTZ001
    | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
    | st.sampled_from(["tomorrow", "infinity", datetime(2026, 1, 1), datetime.min.replace(tzinfo=UTC)])  # noqa: DTZ001
)
DELAYS = st.timedeltas(timedelta(0), timedelta(days=36_525)) | st.sampled_from(
    [timedelta(0), timedelta(microseconds=1), timedelta(-1), timedelta.max]
)
OPERANDS = st.sampled_from([{"var": "payload.a"}, {"var": "meta"}, {"var": "action.attempt"}, {"var": "facts.x.0"}])
RULES = st.builds(
    lambda operator, left, right: {operator: [left, right]},
    st.sampled_from(["==", "===", "!=", "<", "and", "or", "in", "!", "bogus"]),
    OPERANDS | SCALARS,
    OPERANDS | SCALARS | st.sampled_from([{"var": "a"}, math.nan]),
)
TYPES = st.integers(0, 9).flatmap(
    lambda die: (
        ANY_TEXTS
        if die == 0
        else st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=120)
        if die < 4
        else st.sampled_from(["email.welcome", "a", 'it\'s "quoted"', "a,b", "{a}", "NULL", "\\"])
    )
)
PRIORITIES = st.integers(-(2**15), 2**15 - 1) | st.sampled_from([0, 0, 0, 2**15, -(2**15) - 1, True, 1.0, "1"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a publisher says, before anybody has checked it."""

    type: Any
    payload: Any
    priority: Any
    key: Any
    ordering_key: Any
    rules: Any
    meta: Any
    end_at: Any
    delay: Any


SAID = st.builds(
    Said,
    type=TYPES,
    payload=DOCUMENTS,
    priority=PRIORITIES,
    key=st.none() | ANY_TEXTS,
    ordering_key=st.none() | ANY_TEXTS,
    rules=st.none() | RULES,
    meta=st.none() | st.dictionaries(JSON_KEYS, SCALARS, max_size=3),
    end_at=st.none() | INSTANTS,
    delay=st.none(),
) | st.builds(
    Said,
    type=TYPES,
    payload=DOCUMENTS,
    priority=PRIORITIES,
    key=st.none() | TEXTS,
    ordering_key=st.none() | TEXTS,
    rules=st.none(),
    meta=st.none() | DOCUMENTS,
    end_at=st.none(),
    delay=st.none() | DELAYS,
)


def drafted(draft: Draft, said: Said) -> Draft:
    draft = draft.type(said.type).payload(said.payload).priority(said.priority)
    draft = draft if said.key is None else draft.idempotency(said.key)
    draft = draft if said.ordering_key is None else draft.ordering_key(said.ordering_key)
    draft = draft if said.rules is None else draft.rules(said.rules)
    draft = draft if said.meta is None else draft.meta(said.meta)
    draft = draft if said.end_at is None else draft.eligible_at(said.end_at)
    return draft if said.delay is None else draft.after(said.delay)


def by_publish(engine: Engine, said: Said) -> Receipt:
    return publish(
        engine,
        said.type,
        said.payload,
        end_at=said.end_at,
        delay=said.delay,
        priority=said.priority,
        idempotency_key=said.key,
        ordering_key=said.ordering_key,
        rules=said.rules,
        meta=said.meta,
    )


def by_quick(engine: Engine, said: Said) -> Receipt:
    moment = said.end_at if said.delay is None else said.delay
    return Publisher(engine).quick(
        said.type, moment, said.payload, idempotency=said.key, rules=said.rules, meta=said.meta, when=lambda _: True
    )


def by_draft(engine: Engine, said: Said) -> Receipt:
    return drafted(Publisher(engine).draft(), said).commit()


def by_builder(engine: Engine, said: Said) -> Receipt:
    return Publisher(engine).publish(lambda draft: drafted(draft, said))


def by_many(engine: Engine, said: Said) -> Receipt:
    """Between two others of its kind, so that it goes the way of a batch."""
    made = drafted(Draft(), said)
    others = [replace(said, type="other", key=key, ordering_key=None) for key in (None, "other")]
    first, second = (drafted(Draft(), other) for other in others)
    return publish_many(engine, [first, made, second])[1]


DOORS: dict[str, Callable[[Engine, Said], Receipt]] = {
    "publish": by_publish,
    "quick": by_quick,
    "draft": by_draft,
    "builder": by_builder,
    "many": by_many,
}


def as_said(door: str, said: Said) -> Said:
    """*said* without what that door has no word for."""
    return replace(said, priority=0, ordering_key=None) if door == "quick" else said


def claimed(engine: Engine, id_: int, said: Said) -> Action:
    """The action as a processor gets it; its row was made due for that."""
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == id_).values(end_at=SOME_TIME))
    lane = Lane(type=said.type, priority=said.priority, end_at=SOME_TIME)
    [raw] = claiming.claim(engine, TABLE, [lane], limit=10, lease=LEASE, claimed_by="flow-run")
    assert raw.id == id_
    return raw.action()


def outcome(engine: Engine, door: str, said: Said) -> tuple[str, Any]:
    """The error and its message; or what the claim read back. The table is empty afterwards."""
    try:
        receipt = DOORS[door](engine, said)
    except ClaimDispatchError as error:
        with engine.connect() as connection:
            assert connection.execute(TABLE.select()).all() == []
        return type(error).__name__, str(error)
    assert receipt.outcome == "created"
    assert receipt.id is not None
    stored = row(engine, receipt.id)
    waits = None if said.end_at is not None else stored.end_at - stored.created_at
    action = claimed(engine, receipt.id, said)
    with engine.begin() as connection:
        connection.execute(delete(TABLE))
    read = (action.type, action.priority, action.idempotency_key, action.ordering_key, waits)
    return "accepted", (*read, stored.end_at if waits is None else None, action.payload, action.rules, action.meta)


def expected(said: Said) -> tuple[Any, ...]:
    instant = datetime.fromisoformat(said.end_at) if isinstance(said.end_at, str) else said.end_at
    # In UTC: an instant in the gap or fold of a zone equals none of another zone, whatever it is.
    instant = None if instant is None else instant.astimezone(UTC)
    waits = None if instant is not None else said.delay or timedelta(0)
    own = (said.type, said.priority, said.key, said.ordering_key, waits, instant)
    return (*own, said.payload, said.rules, said.meta or {})


def exactly(value: Any) -> Any:
    """*value* so that 1, 1.0 and True differ, and the order of keys does not count; jsonb has no negative zero."""
    if isinstance(value, Mapping):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exactly(item) for item in value]
    return (type(value).__name__, 0.0 if value == 0.0 and isinstance(value, float) else value)


def close(read: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    """Equal; but SQLite's clock, and so a delay, is exact to the millisecond only."""
    waits, delay = read[4], wanted[4]
    near = waits is delay is None or abs(waits - delay) <= timedelta(milliseconds=1)
    return near and exactly(read[:4] + read[5:]) == exactly(wanted[:4] + wanted[5:])


@pytest.fixture
def both(sqlite_url: str, postgres_url: str) -> Iterator[list[Engine]]:
    """One engine for each kind of database."""
    pair = [engines.create(url) for url in (sqlite_url, postgres_url)]
    yield pair
    for engine in pair:
        engine.dispose()


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("examples", [EXAMPLES // 4, pytest.param(EXAMPLES, marks=pytest.mark.exhaustive)])
def test_both_databases_hold_what_was_said_or_refuse_it_alike(both: list[Engine], examples: int) -> None:
    """A payload that one database changes, or a key that only one refuses, is found in production otherwise."""
    seen: dict[str, int] = {}

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=set(Phase) - {Phase.explain})
    @given(st.sampled_from(list(DOORS)), SAID)
    def check(door: str, said: Said) -> None:
        said = as_said(door, said)

        sqlite, postgresql = (outcome(engine, door, said) for engine in both)

        verdict, read = sqlite
        event(f"{door}: {verdict}")
        seen[verdict] = seen.get(verdict, 0) + 1
        assert postgresql[0] == verdict
        if verdict == "accepted":
            assert close(read, expected(said)), (read, expected(said))
            assert close(postgresql[1], expected(said)), (postgresql[1], expected(said))
        else:
            assert postgresql[1] == read

    check()

    assert seen["accepted"] >= examples * 0.3
    assert {"InvalidTypeError", "InvalidPayloadError", "InvalidInstantError", "InvalidKeyError"} <= set(seen)
