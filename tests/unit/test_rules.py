"""Rules: malformed ones are refused before they are stored, and none runs for ever."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_claim_dispatch.errors import InvalidRulesError
from prefect_claim_dispatch.rules import MAX_RULES_BYTES, checked_rules, compile_rules, evaluate

SECRET = "hunter2"


def holds(rules: Any, **context: Any) -> bool:
    return evaluate(compile_rules(rules), context)


def nots(levels: int) -> Any:
    rules: Any = {"var": "payload.a"}
    for _ in range(levels):
        rules = {"!": [rules]}
    return rules


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ({"==": [{"var": "payload.state"}, "unpaid"]}, True),
        ({"==": [{"var": "payload.state"}, "paid"]}, False),
        ({"and": [{"==": [{"var": "meta.source"}, "signup"]}, {"<": [{"var": "action.attempt"}, 3]}]}, True),
        ({"<": [{"datetime": {"var": "now"}}, {"datetime": {"var": "payload.until"}}]}, True),
        ({"in": ["b", {"var": "payload.tags"}]}, True),
        ({"some": [{"var": "payload.lines"}, {">": [{"var": "amount"}, 10]}]}, True),
        ({"missing": ["payload.nothing"]}, True),
        ({"missing": ["payload.state"]}, False),
        ({"var": "facts.is_paid"}, False),
        ({"var": "payload.empty"}, False),
        ({"var": "payload.nothing"}, False),
        ({"!": [{"var": "facts.is_paid"}]}, True),
    ],
)
def test_rules_look_at_the_whole_context(rules: Any, verdict: bool) -> None:
    """Payload, metadata, the action, the time and the present facts are what a second guard can be about."""
    context = {
        "payload": {
            "state": "unpaid",
            "until": "2026-01-01T01:00:00+00:00",
            "tags": ["a", "b"],
            "lines": [{"amount": 5}, {"amount": 11}],
            "empty": [],
        },
        "meta": {"source": "signup"},
        "action": {"id": 1, "attempt": 2},
        "now": "2026-01-01T01:30:00+01:00",
        "facts": {"is_paid": False},
    }

    assert evaluate(checked_rules(rules), context) is verdict


def test_facts_may_hold_what_a_payload_may() -> None:
    """Facts come from the author's database: instants and decimals must not make a row dead."""
    assert holds({"==": [{"var": "facts.at"}, "2026-01-01T00:00:00Z"]}, facts={"at": datetime(2026, 1, 1, tzinfo=UTC)})


def test_huge_integers_in_the_payload_harm_no_rule() -> None:
    """A payload may hold them, so rules over such a payload must still be evaluated."""
    assert holds({"==": [{"var": "payload.state"}, 1]}, payload={"state": 1, "huge": 10**600})


def test_deepest_payload_can_be_evaluated() -> None:
    """What publish lets pass must not end dead at dispatch, because the context is a level deeper."""
    payload: dict[str, Any] = {}
    for _ in range(99):
        payload = {"a": payload}

    assert holds({"!!": [{"var": "payload.a"}]}, payload=payload)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"bogus": [1]}, "unknown operator `bogus` at /"),
        ({"and": [True, {"bogus": 1}]}, "unknown operator `bogus` at /and/1"),
        ({"zeros": [[1_000_000_000]]}, "unknown operator `zeros`"),
        ({"==": [1]}, "`==` takes at least 2 arguments, not 1"),
        ({"and": [{"a": 1, "b": 2}]}, "an object with 2 keys is not an operator call"),
        ({}, "must be one JSONLogic operation, an object with one key, got 0 keys"),
        ({"a": 1, "b": 2}, "got 2 keys; combine several with 'and'"),
        ([{"var": "payload"}], "must be one JSONLogic operation, an object with one key, got list"),
        (True, "got bool"),
        ("{}", "got str"),
        (None, "got NoneType"),
        (
            {"var": "order_id"},
            "rules read 'order_id', which is none of payload, meta, action, now, facts; write 'payload.",
        ),
        ({"missing": ["a.b"]}, "write 'payload.a.b'"),
        ({"==": [1, float("nan")]}, "rules at $['=='][1] is NaN or infinite"),
        ({"==": [1, b"x"]}, "is bytes"),
        ({"==": [1, "\x00"]}, "holds a NUL character"),
        ({"==": [1, "\ud800"]}, "holds a lone surrogate"),
        ({"==": [1, 10**700]}, "integer of more than 640 digits"),
        ({1: [1]}, "has a key that is int"),
        ({"in": [1, {1, 2}]}, "is a set"),
        (nots(40), "is nested deeper than 64 levels"),
        (nots(5_000), "is nested deeper than 64 levels"),
        ({"in": ["x", "x" * MAX_RULES_BYTES]}, "rules is larger than 16384 bytes"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: Any, told: str) -> None:
    """At publish somebody is there to read the message; at dispatch a row would be cancelled, or dead, days later."""
    with pytest.raises(InvalidRulesError) as refused:
        checked_rules(rules)

    assert told in str(refused.value)


def test_equal_rules_are_compiled_once() -> None:
    """A publisher sends the same few rules with every action."""
    assert compile_rules({"!": [True]}) is compile_rules({"!": (True,)})


def test_evaluation_that_fails_shows_no_value() -> None:
    """The engine may quote what a rule was given, which may be the payload."""
    with pytest.raises(InvalidRulesError) as failed:
        holds({"datetime": {"var": "payload.secret"}}, payload={"secret": SECRET})

    assert SECRET not in str(failed.value)
    assert failed.value.__cause__ is None
    assert "in operator 'datetime'" in str(failed.value)


def test_rules_written_behind_our_back_are_compiled_as_they_are() -> None:
    """Rows inserted by plain SQL skip the stricter check; only what the engine can't run is refused."""
    assert holds([1])
    assert not holds({"var": "elsewhere"})
    assert holds("text")
