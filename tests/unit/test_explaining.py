"""Explaining rules: which part is false, without asking more than dispatch would, and without showing payloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_claim_dispatch.explaining import Part, State, explain
from prefect_claim_dispatch.rules import compile_rules, evaluate
from tests.kit.bombs import COUNTED, LARGE, REFUSED, SHARED

PAID: Any = {"==": [{"var": "payload.state"}, "paid"]}
UNPAID: Any = {"==": [{"var": "payload.state"}, "unpaid"]}
BROKEN: Any = {"datetime": {"var": "payload.state"}}
CONTEXT: dict[str, Any] = {"payload": {"state": "unpaid", "n": 3, "lines": [{"n": 1}], "none": None}}


def states(part: Part) -> list[Any]:
    """The state of each argument, in order."""
    return [inner.state.value for inner in part.parts]


def all_of(part: Part) -> Iterator[Part]:
    yield part
    for inner in part.parts:
        yield from all_of(inner)


@pytest.mark.parametrize(
    ("rules", "state", "arguments"),
    [
        ({"and": [UNPAID, PAID, UNPAID]}, "false", ["true", "false", "not asked"]),
        ({"or": [PAID, UNPAID, BROKEN]}, "true", ["false", "true", "not asked"]),
        ({"and": [UNPAID, {"or": [PAID, False]}]}, "false", ["true", "false"]),
        ({"!": [UNPAID]}, "false", ["true"]),
        ({"!": UNPAID}, "false", ["true"]),
        ({"if": [UNPAID, PAID, UNPAID]}, "false", ["true", "false", "not asked"]),
        ({"if": [PAID, True, UNPAID]}, "true", ["false", "not asked", "true"]),
        ({"if": [PAID, 1, UNPAID, 2, BROKEN]}, "true", ["false", "not asked", "true", "true", "not asked"]),
        ({"if": [PAID, 1, PAID, 2, UNPAID]}, "true", ["false", "not asked", "false", "not asked", "true"]),
        ({"??": [{"var": "payload.none"}, UNPAID, BROKEN]}, "true", ["false", "true", "not asked"]),
        ({"and": [BROKEN, PAID]}, "error", ["error", "not asked"]),
        ({"try": [BROKEN, True]}, "true", ["error"]),
        ({"some": [{"var": "payload.lines"}, {">": [{"var": "n"}, 0]}]}, "true", ["true"]),
        (PAID, "false", ["true"]),
        ([PAID], "true", ["false"]),
        ({"var": "payload.n"}, "true", []),
        ({"bogus": [1]}, "error", []),
        ({"a": 1, "b": 2}, "error", []),
        (False, "false", []),
    ],
)
def test_each_part_says_what_it_comes_to(rules: Any, state: str, arguments: list[str]) -> None:
    """Whoever asks why an action was cancelled must see the one part that was false."""
    part = explain(rules, CONTEXT)

    assert (part.state.value, states(part)) == (state, arguments)
    if part.state in (State.TRUE, State.FALSE):
        assert evaluate(compile_rules(rules), CONTEXT) is (part.state is State.TRUE)


def test_parts_name_their_place() -> None:
    """A JSON pointer finds the part in the rules, however long they are."""
    part = explain({"and": [UNPAID, {"!": {"/": [{"var": "payload.n"}, 3]}}]}, CONTEXT)

    pointers = [inner.pointer for inner in all_of(part)]
    assert pointers == ["", "/and/0", "/and/0/==/0", "/and/1", "/and/1/!/0", "/and/1/!/0/~1/0"]


def test_values_are_shown_only_when_asked_for() -> None:
    """An explanation is shown to more people than payloads."""
    part = explain(UNPAID, {"payload": {"state": "hunter2"}})

    assert "hunter2" not in json.dumps(part.as_dict())
    assert part.as_dict(values=True)["parts"][0]["value"] == "hunter2"
    assert part.parts[0].kind == "string"


def test_without_a_context_nothing_is_asked() -> None:
    """Facts that can't be had now leave nothing to say about any part."""
    part = explain({"and": [UNPAID, BROKEN]}, None)

    assert {inner.state for inner in all_of(part)} == {State.NOT_ASKED}


@pytest.mark.parametrize("rules", [*COUNTED.values(), *REFUSED.values(), *SHARED.values()])
def test_bomb_is_explained_as_an_error_and_not_written_out(rules: Any) -> None:
    """Whoever is on call must be able to look at the rules that made a row dead."""
    part = explain({"and": [True, rules]}, {"payload": LARGE})

    assert part.state is (State.TRUE if rules in SHARED.values() else State.ERROR)
    assert len(json.dumps(part.as_dict(values=True))) < 4_000_000
