"""The operators of JSONLogic as rules see them: every family that is admitted, by its documented meaning.

The cases are our own. ``JSONLOGIC_SUITES`` may name a folder with suites in the published form
(``{"rule", "data", "result"}``), which are then run as well.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefect_claim_dispatch import rules as rules_module
from prefect_claim_dispatch.errors import InvalidRulesError
from prefect_claim_dispatch.rules import compile_rules, evaluate

Case = tuple[Any, Any, Any]
NONE: dict[str, Any] = {}
ENGINE = rules_module._ENGINE
OPERATORS = {name: entry["family"] for entry in ENGINE.operators() for name in (entry["name"], *entry["aliases"])}
NUMBERS = (-3, -1, 0, 1, 2, 7)
ORDER: dict[str, Any] = {
    "a": 1,
    "b": {"c": "x", "d": [10, 20, 30]},
    "lines": [{"n": 1, "k": "p"}, {"n": 5, "k": "q"}, {"n": 3, "k": "p"}],
    "words": ["b", "a", "c"],
    "none": None,
}


def arithmetic() -> list[Case]:
    """Whole numbers under each operator, and under each comparison."""
    cases: list[Case] = []
    for a, b in itertools.product(NUMBERS, NUMBERS):
        cases += [
            ({"+": [a, {"var": "b"}]}, {"b": b}, a + b),
            ({"*": [{"var": "a"}, b]}, {"a": a}, a * b),
            ({"-": [a, b]}, NONE, a - b),
            ({"<": [a, b]}, NONE, a < b),
            ({">=": [{"var": "a"}, b]}, {"a": a}, a >= b),
            ({"===": [a, {"var": "b"}]}, {"b": b}, a == b),
            ({"!=": [a, b]}, NONE, a != b),
            ({"max": [a, b]}, NONE, max(a, b)),
            ({"min": [a, b]}, NONE, min(a, b)),
        ]
    return cases


def truth() -> list[Case]:
    """What is true by JSONLogic, which is neither Python's idea nor JavaScript's."""
    values = [(0, False), (1, True), (-1, True), ("", False), ("0", True), ("x", True), ([], False), ([0], True)]
    values += [(None, False), (True, True), (False, False)]
    cases: list[Case] = []
    for value, holds in values:
        data = {"v": value}
        cases += [
            ({"!!": [{"var": "v"}]}, data, holds),
            ({"!": [{"var": "v"}]}, data, not holds),
            ({"if": [{"var": "v"}, "yes", "no"]}, data, "yes" if holds else "no"),
            ({"?:": [{"var": "v"}, 1, 2]}, data, 1 if holds else 2),
            ({"and": [{"var": "v"}, "last"]}, data, "last" if holds else value),
            ({"or": [{"var": "v"}, "last"]}, data, value if holds else "last"),
            ({"??": [{"var": "v"}, "last"]}, data, "last" if value is None else value),
        ]
    return cases


CASES: list[Case] = [
    *arithmetic(),
    *truth(),
    ({"var": "a"}, ORDER, 1),
    ({"var": "b.c"}, ORDER, "x"),
    ({"var": "b.d.1"}, ORDER, 20),
    ({"var": ["nowhere", 9]}, ORDER, 9),
    ({"var": "nowhere"}, ORDER, None),
    ({"val": ["b", "c"]}, ORDER, "x"),
    ({"==": [1, "1"]}, NONE, True),
    ({"!==": [1, "1"]}, NONE, True),
    ({"<": [1, 2, 3]}, NONE, True),
    ({"<=": [1, 3, 2]}, NONE, False),
    ({">": [2, 1]}, NONE, True),
    ({"/": [9, 2]}, NONE, 4.5),
    ({"%": [9, 4]}, NONE, 1),
    ({"-": [4]}, NONE, -4),
    ({"cat": ["a", "b", 1]}, NONE, "ab1"),
    ({"substr": ["jsonlogic", 4]}, NONE, "logic"),
    ({"substr": ["jsonlogic", -5, 3]}, NONE, "log"),
    ({"in": ["b", {"var": "words"}]}, ORDER, True),
    ({"in": ["z", "abc"]}, NONE, False),
    ({"merge": [[1], [2, 3], 4]}, NONE, [1, 2, 3, 4]),
    ({"filter": [{"var": "lines"}, {">": [{"var": "n"}, 2]}]}, ORDER, ORDER["lines"][1:]),
    ({"map": [{"var": "lines"}, {"var": "n"}]}, ORDER, [1, 5, 3]),
    ({"reduce": [[1, 2, 3], {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}, NONE, 6),
    ({"all": [{"var": "lines"}, {">": [{"var": "n"}, 0]}]}, ORDER, True),
    ({"all": [[], True]}, NONE, False),
    ({"some": [{"var": "lines"}, {"==": [{"var": "k"}, "q"]}]}, ORDER, True),
    ({"none": [{"var": "lines"}, {"==": [{"var": "k"}, "z"]}]}, ORDER, True),
    ({"missing": ["a", "z"]}, ORDER, ["z"]),
    ({"missing_some": [1, ["a", "z"]]}, ORDER, []),
    ({"missing_some": [2, ["a", "z"]]}, ORDER, ["z"]),
    ({"<": [{"datetime": "2026-01-01T00:00:00Z"}, {"datetime": "2026-01-01T00:00:00-01:00"}]}, NONE, True),
    ({"==": [{"datetime": "2026-01-01T01:00:00+01:00"}, {"datetime": "2026-01-01T00:00:00Z"}]}, NONE, True),
    ({"==": [{"timestamp": "1d"}, {"timestamp": "24h"}]}, NONE, True),
    ({"format_date": ["2026-01-31T12:00:00Z", "yyyy-MM-dd"]}, NONE, "2026-01-31"),
    ({"date_diff": ["2026-01-03T00:00:00Z", "2026-01-01T00:00:00Z", "days"]}, NONE, 2),
    ({"==": [{"type": {"parse_date": ["2026-01-31", "yyyy-MM-dd"]}}, "null"]}, NONE, False),
    ({"==": [{"type": {"now": []}}, "null"]}, NONE, False),
    ({"length": "abc"}, NONE, 3),
    ({"length": {"var": "words"}}, ORDER, 3),
    ({"starts_with": ["abc", "ab"]}, NONE, True),
    ({"ends_with": ["abc", "ab"]}, NONE, False),
    ({"upper": "aB"}, NONE, "AB"),
    ({"lower": "aB"}, NONE, "ab"),
    ({"trim": "  a "}, NONE, "a"),
    ({"split": ["a,b", ","]}, NONE, ["a", "b"]),
    ({"sort": [{"var": "words"}]}, ORDER, ["a", "b", "c"]),
    ({"slice": [{"var": "words"}, 1, 3]}, ORDER, ["a", "c"]),
    ({"distinct": [[1, 2, 1]]}, NONE, [1, 2]),
    ({"!!": [{"group_by": [{"var": "lines"}, {"var": "k"}]}]}, ORDER, True),
    ({"keys": {"var": "b"}}, ORDER, ["c", "d"]),
    ({"length": {"values": {"var": "b"}}}, ORDER, 2),
    ({"length": {"entries": {"var": "b"}}}, ORDER, 2),
    ({"exists": "a"}, ORDER, True),
    ({"exists": ["b", "z"]}, ORDER, False),
    ({"switch": [{"var": "a"}, [[1, "one"], [2, "two"]], "many"]}, ORDER, "one"),
    ({"match": [5, [[1, "one"]], "many"]}, NONE, "many"),
    ({"type": ["x"]}, NONE, "string"),
    ({"try": [{"throw": "no"}, "caught"]}, NONE, "caught"),
    ({"abs": -2}, NONE, 2),
    ({"ceil": 1.2}, NONE, 2),
    ({"floor": 1.8}, NONE, 1),
]


def operators_of(rules: Any) -> set[str]:
    """All operators in *rules*."""
    if isinstance(rules, list):
        return set().union(*map(operators_of, rules))
    if not isinstance(rules, dict):
        return set()
    return set(rules) | operators_of(list(rules.values()))


def assert_case(rule: Any, data: Any, expected: Any) -> None:
    """The engine's value is as expected, and our verdict is that value's truth."""
    value = json.loads(ENGINE.compile_checked(json.dumps(rule)).evaluate_metered(json.dumps(data))[0])

    assert value == expected, rule
    assert evaluate(compile_rules(rule), data) is ENGINE.truthy(json.dumps(value)), rule


@pytest.mark.parametrize(("rule", "data", "expected"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_operator_does_what_it_is_documented_to_do(rule: Any, data: Any, expected: Any) -> None:
    """An engine's new version that means something else by an operator would cancel or run the wrong actions."""
    assert_case(rule, data, expected)


def test_no_family_and_no_operator_is_without_cases() -> None:
    """A family without cases is one whose change nobody would notice."""
    used = set().union(*(operators_of(rule) for rule, _, _ in CASES))

    assert len(CASES) >= 300
    assert {OPERATORS[name] for name in used} == set(rules_module._FAMILIES)
    assert {name for name in OPERATORS if name not in used} == set()


@pytest.mark.skipif("JSONLOGIC_SUITES" not in os.environ, reason="no folder of published suites is named")
def test_published_suites_agree() -> None:
    """Every case counts: it is run, or refused by us, or about what rules leave out."""
    tally: Counter[str] = Counter()
    wrong: list[Any] = []
    for path in sorted(Path(os.environ["JSONLOGIC_SUITES"]).rglob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            tally[outcome := outcome_of(case)] += 1
            wrong += [(path.name, case)] if outcome == "differs" else []

    print(dict(tally))
    assert tally["agrees"] >= 300
    assert not wrong, wrong[:20]


def outcome_of(case: Any) -> str:
    """What came of one published case."""
    if not isinstance(case, dict) or "rule" not in case or "result" not in case:
        return "no case with a result"
    if case.get("templating") or case.get("preserve_structure") or case.get("config"):
        return "another mode of the engine"
    try:
        compile_rules(case["rule"])
    except InvalidRulesError as error:
        return "refused: uncounted" if "are refused" in str(error) else "refused: does not compile"
    try:
        assert_case(case["rule"], case.get("data"), case["result"])
    except AssertionError:
        value = ENGINE.compile(json.dumps(case["rule"])).evaluate(case.get("data"))
        # The published runner sorts the members of objects.
        return "agrees but for order" if in_order(value) == in_order(case["result"]) else "differs"
    except Exception as error:  # an error where a value is expected
        return f"raises {type(error).__name__}"
    return "agrees"


def in_order(value: Any) -> Any:
    """*value*, a list in one order."""
    return sorted(map(json.dumps, value)) if isinstance(value, list) else value
