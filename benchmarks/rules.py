"""Rules: what the compile cache saves, and what asking them costs a row.

- *cached*: `compile_rules` of rules seen before, as for every row but the first; against *anew*, the cache emptied
  before each.
- *asked*: the guard's part for a row, cached rules evaluated over its context; against *none*, making the context only.
  Rows a second, of one process; a claim flow settles some tens of thousands.

What would be unfair to read into it: most rows have no rules, and pay nothing. Each round runs all sides, every other
one in the opposite order; medians count. No database.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import kit

from prefect_claim_dispatch import rules as rules_module
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.rules import compile_rules, context_of, evaluate

NOW = datetime(2026, 1, 31, tzinfo=UTC)
SMALL: Any = {"==": [{"var": "payload.state"}, "unpaid"]}
RULES: dict[str, Any] = {
    "small": SMALL,
    "medium": {"and": [SMALL, {"!": [{"var": "facts.is_paid"}]}, {"<": [{"var": "action.attempt"}, 3]}] * 4},
    "large": {"and": [{"or": [{"==": [{"var": "payload.n"}, number]}, SMALL]} for number in range(150)]},
}
ROWS = 2_000
PAYLOAD = {"state": "unpaid", "n": 7, "lines": [{"n": number, "sku": "x" * 10} for number in range(10)]}


def action(rules: Any) -> Action:
    return Action(id=1, type="a", payload=PAYLOAD, end_at=NOW, created_at=NOW, claim_count=1, rules=rules)


def timed(work: Callable[[], object], rows: int) -> float:
    began = time.perf_counter()
    for _ in range(rows):
        work()
    return rows / (time.perf_counter() - began)


def anew(rules: Any) -> None:
    rules_module._compiled.cache_clear()
    compile_rules(rules)


def measure(rules: Any, rows: int, rounds: int) -> dict[str, float | None]:
    row = action(rules)
    sides: dict[str, Callable[[], float]] = {
        "cached": lambda: timed(lambda: compile_rules(rules), rows),
        "anew": lambda: timed(lambda: anew(rules), rows),
        "asked": lambda: timed(lambda: evaluate(compile_rules(row.rules), context_of(row, {}, now=NOW)), rows),
        "none": lambda: timed(lambda: context_of(row, {}, now=NOW), rows),
    }
    return kit.figures(kit.rates(sides, rounds), tuple(sides), [("cached", "anew"), ("asked", "none")])


def main() -> None:
    """Measure each size of rules."""
    options = kit.parser(__doc__).parse_args()
    rows = max(100, int(ROWS * options.scale))
    results = [{"rules": size} | measure(rules, rows, options.rounds) for size, rules in RULES.items()]
    kit.show("rules: times a second, and ratios (medians)", results, options, labels=["rules"])


if __name__ == "__main__":
    main()
