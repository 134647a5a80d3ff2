"""Rules where they count: at dispatch, on every database; a bomb harms its own row, and the explanation agrees."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import Snooze, evaluator, operations, processor, publish, testing
from prefect_claim_dispatch import rules as rules_module
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.clocks import wall_clock
from prefect_claim_dispatch.explaining import State, explain
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.rules import context_of
from tests.kit.bombs import COUNTED, LARGE, LONG_TEXTS, READING, REFUSED, SHARED
from tests.kit.tables import add_many

FACTS = {"is_paid": True}


def registry() -> Registry:
    """A processor that does nothing, and knows facts."""
    known = Registry()

    def facts(_action: Action) -> dict[str, Any]:
        return FACTS

    @processor("a", registry=known, facts=facts)
    def do_nothing() -> None: ...

    @processor("later", registry=known, on_rules_false=Snooze(timedelta(hours=1)))
    def do_later() -> None: ...

    return known


def test_bombs_go_dead_alone(engine: Engine) -> None:
    """Also those that plain SQL brought past the refusal: the siblings are processed, and the loop lives."""
    bombs = [*COUNTED.values(), *REFUSED.values()]
    fine = [*SHARED.values(), None]
    rows = [{"payload": LARGE | ({} if rules is None else {"__rules": rules})} for rules in (*bombs, *fine)]
    ids = add_many(engine, rows)

    report = testing.drain(engine, registry())

    states = [operations.get(engine, id_).status.value for id_ in ids]
    assert states == ["dead"] * len(bombs) + ["processed"] * len(fine)
    assert (report.dead, report.processed) == (len(bombs), len(fine))
    kinds = {operations.get(engine, id_).errors[-1]["type"] for id_ in ids[: len(bombs)]}
    assert kinds == {"RulesFailed", "InvalidRules"}


def test_rules_that_get_no_time_now_are_asked_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy with other things, right rules must not go dead; and the next row goes on."""
    monkeypatch.setattr(rules_module, "BYTES_READ_HERE", 1)
    monkeypatch.setattr(evaluator, "SECONDS", 0.01)
    late, fine = add_many(engine, [{"payload": LONG_TEXTS | {"__rules": READING["read as a duration"]}}, {}])

    testing.drain(engine, registry())

    assert (operations.get(engine, late).status.value, operations.get(engine, late).fail_count) == ("pending", 1)
    assert operations.get(engine, late).errors[-1]["type"] == "RulesUnansweredError"
    assert operations.get(engine, fine).status.value == "processed"


@pytest.mark.parametrize(
    ("rules", "status", "state"),
    [
        ({"var": "facts.is_paid"}, "processed", State.TRUE),
        ({"!": [{"var": "facts.is_paid"}]}, "cancelled", State.FALSE),
        ({"==": [{"var": "action.attempt"}, 1]}, "processed", State.TRUE),
        ({"<": [{"datetime": {"var": "now"}}, {"datetime": {"var": "action.created_at"}}]}, "cancelled", State.FALSE),
        ({"datetime": {"var": "payload.text"}}, "dead", State.ERROR),
    ],
)
def test_explanation_says_what_dispatch_does(engine: Engine, rules: Any, status: str, state: State) -> None:
    """An explanation of something else than dispatch's own context would mislead whoever is on call."""
    id_ = publish(engine, "a", {"text": "no instant"}, rules=rules).id
    assert id_ is not None
    action = operations.get(engine, id_).action("action_logs", None)
    assert action is not None

    explained = explain(action.rules, context_of(action, FACTS, now=wall_clock()))
    testing.drain(engine, registry())

    assert (operations.get(engine, id_).status.value, explained.state) == (status, state)


def test_false_rules_may_snooze(engine: Engine) -> None:
    """What is not so yet may be so in an hour."""
    id_ = publish(engine, "later", rules={"==": [1, 2]}).id
    assert id_ is not None

    report = testing.drain(engine, registry())

    assert report.snoozed == 1
    assert operations.get(engine, id_).status.value == "pending"
