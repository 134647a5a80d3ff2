"""Rule bombs: rules of a few dozen bytes that would take all time or memory, and the payload that sets them off."""

from __future__ import annotations

from typing import Any, Final

ACCUMULATOR: Final[Any] = {"var": "accumulator"}
ITEMS: Final[Any] = {"var": "payload.items"}
LONG: Final[Any] = {"val": [[2], "payload", "text"]}
ALL: Final[Any] = {"val": [[2], "payload", "items"]}

LARGE: Final[dict[str, Any]] = {"items": list(range(2_000)), "few": [0] * 40, "text": "x" * 500_000}


def nots(levels: int, inner: Any) -> Any:
    """*inner* under many negations."""
    for _ in range(levels):
        inner = {"!": [inner]}
    return inner


COUNTED: Final[dict[str, Any]] = {
    "map in map": {"map": [ITEMS, {"map": [ALL, {"map": [{"val": [[4], "payload", "items"]}, 1]}]}]},
    "reduce in map": {"map": [ITEMS, {"reduce": [ALL, {"+": [ACCUMULATOR, {"var": "current"}]}, 0]}]},
    "deep": nots(25, {"map": [ITEMS, {"filter": [ALL, True]}]}),
    "cat doubles": {"reduce": [{"var": "payload.few"}, {"cat": [ACCUMULATOR, ACCUMULATOR]}, "x"]},
    "cat doubles constants": {"reduce": [list(range(40)), {"cat": [ACCUMULATOR, ACCUMULATOR]}, "x"]},
    "in a long list": {"map": [ITEMS, {"in": ["no", ALL]}]},
    "in a long text": {"map": [ITEMS, {"in": ["y", LONG]}]},
    "split": {"map": [ITEMS, {"split": [LONG, "x"]}]},
    "merge": {"map": [ITEMS, {"merge": [ALL, ALL, ALL, ALL]}]},
    "sort": {"map": [ITEMS, {"sort": [ALL]}]},
    "distinct": {"map": [ITEMS, {"distinct": [ALL]}]},
    "upper": {"map": [ITEMS, {"upper": LONG}]},
}
"""Bombs that use up the budget of operations."""

REFUSED: Final[dict[str, Any]] = {
    "reduce: a pair of what it was": {"reduce": [{"var": "payload.few"}, [ACCUMULATOR, ACCUMULATOR], "x"]},
    "reduce: constants": {"reduce": [list(range(40)), [ACCUMULATOR, ACCUMULATOR], "x"]},
    "reduce: merge": {"reduce": [ITEMS, {"merge": [ACCUMULATOR, ACCUMULATOR]}, [1]]},
    "reduce: map": {"reduce": [ITEMS, {"map": [[1, 1], {"val": [[2], "accumulator"]}]}, "x"]},
    "reduce: behind an if": {"reduce": [ITEMS, {"if": [True, [ACCUMULATOR, ACCUMULATOR], 1]}, "x"]},
    "reduce: carried along": {"reduce": [ITEMS, ACCUMULATOR, {"var": "payload.text"}]},
    "throw: what it reads": {"throw": {"map": [ITEMS, LONG]}},
    "throw: in a try": {"try": [{"throw": [{"var": "payload"}]}, True]},
    "format of any length": {"map": [ITEMS, {"format_date": ["2026-01-31T12:00:00Z", LONG]}]},
    "long format": {"format_date": ["2026-01-31T12:00:00Z", "%c" * 100]},
    "unit of any length": {"map": [ITEMS, {"date_diff": ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z", LONG]}]},
}
"""Bombs that the budget would not count."""

SHARED: Final[dict[str, Any]] = {
    "text many times": {"map": [ITEMS, LONG]},
    "list many times": {"map": [ITEMS, ALL]},
    "slice": {"map": [ITEMS, {"slice": [ALL]}]},
}
"""Rules whose result is small in memory and huge as text."""

DIGITS: Final[Any] = {"val": [[2], "payload", "digits"]}
LONG_TEXTS: Final[dict[str, Any]] = {
    "items": list(range(20_000)),
    "digits": "1" * 450_000,
    "part": "0." + "1" * 450_000,
}
PARTED: Final[Any] = {"val": [[2], "payload", "part"]}


def none_of_items(costly: Any) -> Any:
    """Rules that work out *costly* for each of the items, whatever it comes to."""
    return {"none": [ITEMS, {"and": [{"try": [costly, False]}, False]}]}


READING: Final[dict[str, Any]] = {
    "read as a duration": none_of_items({"timestamp": DIGITS}),
    "read as a number": none_of_items({"and": [{"+": [PARTED, 1]}, {"+": [PARTED, 2]}, {"+": [PARTED, 3]}]}),
}
"""Bombs whose every operation reads all of a long text, and is counted as one: half a minute of native code."""
