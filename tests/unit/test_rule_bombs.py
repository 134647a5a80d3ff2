"""Rule bombs: small rules made to take all time or memory. None may hold up, or end, the process that asks them."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest

from prefect_claim_dispatch import evaluator
from prefect_claim_dispatch import rules as rules_module
from prefect_claim_dispatch.errors import InvalidRulesError, RulesUnansweredError
from prefect_claim_dispatch.rules import checked_rules, compile_rules, evaluate
from tests.kit.bombs import COUNTED, LARGE, LONG_TEXTS, READING, REFUSED, SHARED

GROWTH = 256 * 1024 * 1024
SECONDS = 30


@pytest.mark.parametrize("name", COUNTED)
def test_bomb_ends_within_its_budget(name: str) -> None:
    """One publisher's rule must not hold up everybody's actions, nor take the process's memory."""
    compiled = compile_rules(COUNTED[name])

    with bounded(), pytest.raises(InvalidRulesError, match="more than 100000 operations"):
        evaluate(compiled, {"payload": LARGE})


@pytest.mark.parametrize("name", REFUSED)
def test_bomb_that_the_budget_does_not_count_is_refused(name: str) -> None:
    """Before the engine sees it: some of these would be worked out while they are compiled."""
    with bounded(), pytest.raises(InvalidRulesError, match=r"rules are refused: .* at /"):
        checked_rules({"and": [True, REFUSED[name]]})


@pytest.mark.parametrize("name", SHARED)
def test_result_that_names_a_large_value_many_times_is_not_written_out(name: str) -> None:
    """A map of references costs nothing; as text it would be gigabytes."""
    compiled = compile_rules(SHARED[name])

    with bounded():
        assert evaluate(compiled, {"payload": LARGE})


@pytest.fixture
def little_is_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else would be worked out here first, for most of a second, goes to a process of its own at once."""
    monkeypatch.setattr(rules_module, "BYTES_READ_HERE", 1)


def test_bomb_that_reads_much_is_ended_by_the_kernel(little_is_read_here: None) -> None:
    """Native code can't be interrupted, and the budget counts operations: half a minute for a hundred bytes."""
    compiled = compile_rules(READING["read as a duration"])

    with bounded(), pytest.raises(InvalidRulesError, match=r"more than 1 s of the processor|not done in time"):
        evaluate(compiled, {"payload": LONG_TEXTS})


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", READING)
def test_bomb_of_every_kind_that_reads_much_ends(name: str) -> None:
    """Here first, for a moment, and then in a process of its own, as each is by default."""
    compiled = compile_rules(READING[name])

    with bounded(), pytest.raises(InvalidRulesError, match=r"more than 1 s of the processor|not done in time"):
        evaluate(compiled, {"payload": LONG_TEXTS})


def test_rules_that_the_machine_gave_no_time_are_told_apart(
    little_is_read_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be right: the row is tried again, and does not go dead."""
    monkeypatch.setattr(evaluator, "SECONDS", 0.01)

    with pytest.raises(RulesUnansweredError, match="not done in time, on this machine"):
        evaluate(compile_rules(READING["read as a duration"]), {"payload": LONG_TEXTS})


def test_answer_is_the_same_wherever_it_is_worked_out(little_is_read_here: None) -> None:
    """True, false, and each way to fail: what reads much is asked in another process."""
    context = {"payload": {"items": list(range(1_000)), "text": "é\n"}, "facts": {"is_paid": True}}
    all_below = {"all": [{"var": "payload.items"}, {"<": [{"var": ""}, 1_000]}]}

    assert evaluate(compile_rules({"and": [{"var": "facts.is_paid"}, all_below]}), context)
    assert evaluate(compile_rules({"==": [{"var": "payload.text"}, "é\n"]}), context)
    assert not evaluate(compile_rules({"!": [all_below]}), context)
    with pytest.raises(InvalidRulesError, match="in operator '\\+'; check what they read"):
        evaluate(compile_rules({"and": [all_below, {"+": [{"var": "payload.text"}, 1]}]}), context)
    with pytest.raises(InvalidRulesError, match="more than 100000 operations, last in"):
        evaluate(compile_rules(COUNTED["map in map"]), context)


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ({"==": [{"reduce": [[1, 2, 3], {"+": [{"var": "accumulator"}, {"var": "current"}]}, 0]}, 6]}, True),
        ({"reduce": [[1, 2], {"if": [{"var": "current"}, {"max": [{"var": "current"}, 5]}, 0]}, 0]}, True),
        (
            {"reduce": [[1, 2], {"and": [{"!!": [{"var": "accumulator"}]}, {"<": [{"var": "current"}, 2]}]}, True]},
            False,
        ),
        ({"reduce": [[1], {"+": [{"var": "accumulator"}, {"var": "current"}]}, {"var": "payload.start"}]}, True),
        ({"try": [{"throw": "no"}, True]}, True),
        ({"==": [{"format_date": ["2026-01-31T12:00:00Z", "yyyy"]}, "2026"]}, True),
    ],
)
def test_what_is_counted_is_still_allowed(rules: Any, verdict: bool) -> None:
    """Sums over the lines of an order are what `reduce` is for."""
    assert evaluate(checked_rules(rules), {}) is verdict


def test_bombs_would_go_off_without_the_refusal() -> None:
    """The reason for the refusal: with the engine alone such rules take all the memory there is."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({4 * GROWTH}, {4 * GROWTH}))\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS // 10}, {SECONDS // 10}))\n"
        "from datalogic_py import Engine\n"
        "from tests.kit.bombs import REFUSED\n"
        "rule = {'!!': [REFUSED['reduce: a pair of what it was']]}\n"
        "Engine(config={'ops_budget': 100_000}).compile(rule).evaluate_metered({'payload': {'few': [0] * 40}})\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)

    assert done.returncode != 0


class bounded:  # noqa: N801 - reads as a statement
    """Fails unless what happens inside takes little processor time and little memory."""

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF)

    def __exit__(self, *_: object) -> None:
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime - self.before.ru_utime < SECONDS
        assert (after.ru_maxrss - self.before.ru_maxrss) * 1024 < GROWTH
