"""Drafts: immutable values whose setters refuse nonsense where it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from prefect_claim_dispatch import Draft, Publisher, Receipt, publish_many
from prefect_claim_dispatch.errors import (
    ConfigurationError,
    InvalidActionError,
    InvalidInstantError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidRulesError,
    InvalidTypeError,
)
from prefect_claim_dispatch.moments import MAX_DELAY, Moment

BERLIN = ZoneInfo("Europe/Berlin")
NOWHERE = "sqlite:////nowhere/that/can/be/opened.db"


def end_at_of(draft: Draft) -> datetime | None:
    return draft.intent.resolved_moment().end_at


@pytest.mark.parametrize(
    "set_one",
    [
        lambda draft: draft.type("b"),
        lambda draft: draft.payload({"a": 2}),
        lambda draft: draft.eligible_at(datetime(2030, 1, 1, tzinfo=UTC)),
        lambda draft: draft.after(minutes=5),
        lambda draft: draft.idempotency("b"),
        lambda draft: draft.on_conflict("replace"),
        lambda draft: draft.rules({"!": [True]}),
        lambda draft: draft.meta(source="signup"),
        lambda draft: draft.when(bool),
        lambda draft: draft.skip_if(bool),
        lambda draft: draft.priority(5),
        lambda draft: draft.ordering_key("b"),
        lambda draft: draft.table("b"),
    ],
)
def test_every_setter_returns_a_new_draft(set_one: Callable[[Draft], Draft]) -> None:
    """A template that is shared between requests must never be changed by one of them."""
    template = Draft().type("a").payload({"a": 1})

    changed = set_one(template)

    assert changed != template
    assert template == Draft().type("a").payload({"a": 1})


def test_draft_cannot_be_changed() -> None:
    """A value is shared between threads without a thought."""
    with pytest.raises(FrozenInstanceError):
        Draft().intent = Draft().type("a").intent  # type: ignore[misc]


def test_changing_the_payload_later_changes_no_draft() -> None:
    """The draft is what was said when it was made, not a window on an object that lives on."""
    payload = {"items": [1]}
    draft = Draft().payload(payload)

    payload["items"].append(2)

    assert json.loads(draft.intent.document()) == {"items": [1]}


def test_repr_shows_no_payload() -> None:
    """Drafts end up in log lines and tracebacks; payloads must not."""
    draft = Draft().type("a").payload({"a": "hunter2"}).meta(b="hunter2").rules({"==": [1, "hunter2"]})

    assert "hunter2" not in repr(draft)
    assert "type='a'" in repr(draft)


def test_receipt_is_a_value() -> None:
    """It is compared, stored and shipped between processes."""
    receipt = Receipt(id=1, outcome="created")

    assert receipt == Receipt(id=1, outcome="created")
    with pytest.raises(FrozenInstanceError):
        receipt.id = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (datetime(2026, 1, 31, 12, tzinfo=BERLIN), datetime(2026, 1, 31, 11, tzinfo=UTC)),
        ("2026-01-31T12:00:00+01:00", datetime(2026, 1, 31, 11, tzinfo=UTC)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("0001-01-02T00:00:00Z", datetime(1, 1, 2, tzinfo=UTC)),
        ("9999-12-30T23:59:59.999999Z", datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)),
        # 2026-03-29 has no 02:30 in Berlin, 2026-10-25 has two.
        (datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
    ],
)
def test_instant_is_kept_in_utc(when: Any, expected: datetime) -> None:
    """The same instant must reach both databases, whatever zone it was written in."""
    assert end_at_of(Draft().eligible_at(when)) == expected
    assert end_at_of(Draft().eligible_at(lambda: when)) == expected


def test_callable_instant_is_asked_at_commit() -> None:
    """A template's end_at is relative to when it is used, not to when it was written."""
    asked: list[str] = []

    def when() -> datetime:
        asked.append("now")
        return datetime(2030, 1, 1, tzinfo=UTC)

    draft = Draft().eligible_at(when)

    assert asked == []
    assert end_at_of(draft) == datetime(2030, 1, 1, tzinfo=UTC)
    assert asked == ["now"]


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (Draft().after(timedelta(minutes=5)), Moment(delay=timedelta(minutes=5))),
        (Draft().after(minutes=5, seconds=0.5), Moment(delay=timedelta(minutes=5, milliseconds=500))),
        (Draft().after(weeks=1, hours=1, milliseconds=1), Moment(delay=timedelta(days=7, hours=1, milliseconds=1))),
        (Draft().eligible_at(timedelta(minutes=5)), Moment(delay=timedelta(minutes=5))),
        (Draft().eligible_at(lambda: None), Moment()),
        (Draft().after(), Moment(delay=timedelta(0))),
        (Draft().eligible_at("2030-01-01T00:00:00Z").after(minutes=1), Moment(delay=timedelta(minutes=1))),
    ],
)
def test_delay_is_left_to_the_database(draft: Draft, expected: Moment) -> None:
    """An application whose clock is an hour off must not shift its actions by an hour; and the last word counts."""
    assert draft.intent.resolved_moment() == expected


@pytest.mark.parametrize(
    ("refused", "error", "told"),
    [
        (lambda d: d.type(""), InvalidTypeError, "type must have 1 to 120 characters, got 0"),
        (lambda d: d.type("x" * 121), InvalidTypeError, "got 121"),
        (lambda d: d.type("a\nb"), InvalidTypeError, r"type 'a\nb' has control characters"),
        (lambda d: d.type("a\x00"), InvalidTypeError, "control characters"),
        (lambda d: d.type("a\u2028b"), InvalidTypeError, "separators"),
        (lambda d: d.type("a\ud800"), InvalidTypeError, "control characters"),
        (lambda d: d.type(" "), InvalidTypeError, "spaces around it"),
        (lambda d: d.type("a "), InvalidTypeError, "spaces around it"),
        (lambda d: d.type(None), InvalidTypeError, "type must be text, got NoneType"),
        (lambda d: d.type(b"a"), InvalidTypeError, "type must be text, got bytes"),
        (lambda d: d.payload([1]), InvalidPayloadError, "must be a JSON object"),
        (lambda d: d.meta({"a": b""}), InvalidPayloadError, "meta at $.a is bytes"),
        (lambda d: d.rules({"bogus": 1}), InvalidRulesError, "unknown operator"),
        (lambda d: d.idempotency(""), InvalidKeyError, "idempotency_key must have 1 to 255 characters, got 0"),
        (lambda d: d.idempotency("x" * 256), InvalidKeyError, "got 256; use a hash"),
        (lambda d: d.idempotency("a\x00"), InvalidKeyError, "has a NUL or a lone surrogate"),
        (lambda d: d.idempotency("a\udfff"), InvalidKeyError, "has a NUL or a lone surrogate"),
        (lambda d: d.idempotency(7), InvalidKeyError, "idempotency_key must be text, got int; write str(...)"),
        (lambda d: d.ordering_key(""), InvalidKeyError, "ordering_key must have 1 to 255 characters"),
        (lambda d: d.on_conflict("ignore"), InvalidActionError, "must be 'keep', 'replace' or 'raise', got 'ignore'"),
        (lambda d: d.on_conflict([]), InvalidActionError, "on_conflict must be"),
        (lambda d: d.priority(True), InvalidActionError, "priority must be an integer, got bool"),
        (lambda d: d.priority(1.0), InvalidActionError, "priority must be an integer, got float"),
        (lambda d: d.priority("1"), InvalidActionError, "priority must be an integer, got str"),
        (lambda d: d.priority(32_768), InvalidActionError, "from -32768 to 32767"),
        (lambda d: d.priority(-32_769), InvalidActionError, "from -32768 to 32767"),
        (lambda d: d.when(True), InvalidActionError, "when takes a callable of the payload, got bool"),
        (lambda d: d.skip_if(None), InvalidActionError, "skip_if takes a callable"),
        (lambda d: d.eligible_at(datetime(2026, 1, 1)), InvalidInstantError, "is naive; give it a time zone"),  # noqa: DTZ001
        (lambda d: d.eligible_at("2026-01-01T00:00:00"), InvalidInstantError, "is naive"),
        (lambda d: d.eligible_at("2026-01-01"), InvalidInstantError, "is naive"),
        (lambda d: d.eligible_at("infinity"), InvalidInstantError, "'infinity' is no ISO 8601 instant"),
        (lambda d: d.eligible_at("soon"), InvalidInstantError, "write 2026-01-31T12:00:00+00:00"),
        (lambda d: d.eligible_at(""), InvalidInstantError, "is no ISO 8601 instant"),
        (lambda d: d.eligible_at(date(2026, 1, 1)), InvalidInstantError, "must be an aware datetime"),
        (lambda d: d.eligible_at(1_800_000_000), InvalidInstantError, "got int"),
        (lambda d: d.eligible_at(datetime(1, 1, 1, tzinfo=UTC)), InvalidInstantError, "is out of range"),
        (lambda d: d.eligible_at(datetime(9999, 12, 31, tzinfo=UTC)), InvalidInstantError, "is out of range"),
        (
            lambda d: d.eligible_at(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
            InvalidInstantError,
            "is out of range",
        ),
        (
            lambda d: d.eligible_at(datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=12)))),
            InvalidInstantError,
            "is out of range",
        ),
        (lambda d: d.eligible_at(timedelta(-1)), InvalidInstantError, "delay must be from zero"),
        (lambda d: d.after(timedelta(microseconds=-1)), InvalidInstantError, "delay must be from zero"),
        (lambda d: d.after(seconds=-1), InvalidInstantError, "delay must be from zero"),
        (lambda d: d.after(MAX_DELAY + timedelta(1)), InvalidInstantError, "pass end_at for an instant"),
        (lambda d: d.after(timedelta(1), minutes=1), InvalidInstantError, "got both; drop minutes"),
        (lambda d: d.after(60), InvalidInstantError, "delay must be a timedelta, got int"),
        (lambda d: d.after(seconds=float("nan")), InvalidInstantError, "after(seconds) makes no duration"),
        (lambda d: d.after(days=float("inf")), InvalidInstantError, "after(days) makes no duration"),
        (lambda d: d.after(days=10**10), InvalidInstantError, "after(days) makes no duration"),
        (lambda d: d.after(minutes="5"), InvalidInstantError, "after(minutes) makes no duration"),
    ],
)
def test_setter_refuses_what_may_not_reach_the_table(
    refused: Callable[[Any], Draft], error: type[InvalidActionError], told: str
) -> None:
    """The traceback points at the line with the mistake, not at a commit far away."""
    with pytest.raises(error) as raised:
        refused(Draft())

    assert told in str(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("when", [datetime(2026, 1, 1), 7, "soon", timedelta(-1)])  # noqa: DTZ001
def test_what_a_callable_answers_is_checked_too(when: Any) -> None:
    """Otherwise a callable would be the way around every check."""
    with pytest.raises(InvalidInstantError):
        Publisher(NOWHERE).draft("a").eligible_at(lambda: when).commit()


def test_gates_see_the_payload_as_it_will_be_stored() -> None:
    """A gate must decide over what the processor will get, not over the object that it was made from."""
    seen: list[Any] = []
    draft = Publisher(NOWHERE).draft("a").payload({"at": datetime(2026, 1, 1, tzinfo=UTC)}).meta(b=1)

    draft.skip_if(lambda payload: seen.append(payload) or True).commit()

    assert seen == [{"at": "2026-01-01T00:00:00Z"}]


@pytest.mark.parametrize(
    "gated",
    [
        Draft().type("a").when(lambda _: False),
        Draft().type("a").skip_if(lambda _: True),
        Draft().type("a").when(lambda _: True).when(lambda _: []),
        Draft().type("a").when(lambda _: True).skip_if(lambda _: "yes"),
    ],
)
def test_skipped_publish_touches_no_database(gated: Draft) -> None:
    """Where nothing is to be done, an unreachable database is no obstacle."""
    skipped = Receipt(id=None, outcome="skipped")

    assert Publisher(NOWHERE).publish(lambda _: gated) == skipped
    assert publish_many(NOWHERE, [gated, gated]) == [skipped, skipped]


def test_gate_that_raises_is_heard() -> None:
    """A broken gate must not be taken for a no."""
    with pytest.raises(ZeroDivisionError):
        Publisher(NOWHERE).draft("a").when(lambda payload: 1 / 0).commit()


def test_draft_without_a_type_is_refused() -> None:
    """An empty draft is a forgotten call, and the message says which."""
    with pytest.raises(InvalidTypeError, match=r"the draft has no type; call \.type"):
        Publisher(NOWHERE).draft().commit()


@pytest.mark.parametrize("policy", ["replace", "raise"])
def test_conflict_policy_without_a_key_is_refused(policy: Any) -> None:
    """Without a key there is never a conflict: a debounce that forgot it would publish every time."""
    with pytest.raises(InvalidKeyError, match="needs an idempotency key"):
        Publisher(NOWHERE).draft("a").on_conflict(policy).commit()


def test_draft_of_no_publisher_cannot_commit() -> None:
    """It would have to guess the database."""
    with pytest.raises(ConfigurationError, match=r"start with publisher\.draft"):
        Draft().type("a").commit()


@pytest.mark.parametrize("built", [None, {"type": "a"}, Receipt(id=1, outcome="created")])
def test_only_drafts_can_be_published(built: Any) -> None:
    """A builder that forgets its return, or commits by itself, is told so."""
    with pytest.raises(InvalidActionError, match="return the draft itself"):
        Publisher(NOWHERE).publish(lambda _: built)
    with pytest.raises(InvalidActionError, match="expected a Draft"):
        publish_many(NOWHERE, [built])


def test_payload_limit_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are cached for speed; a changed environment must still be seen."""
    Draft().payload({"a": "x" * 100})
    monkeypatch.setenv("CLAIM_DISPATCH_MAX_PAYLOAD_BYTES", "50")

    with pytest.raises(InvalidPayloadError, match="larger than 50 bytes"):
        Draft().payload({"a": "x" * 100})
