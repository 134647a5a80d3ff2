"""What a run says about itself: counts that add up, text that is safe to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from prefect_claim_dispatch.outcomes import (
    Cancel,
    Crashed,
    Failed,
    Outcome,
    Processed,
    Released,
    Snooze,
    Unprocessable,
)
from prefect_claim_dispatch.policies import RetryPolicy, Settlement, settlement_for
from prefect_claim_dispatch.reports import DispatchReport, Tally, verdict_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claimed action, as far as a verdict looks at it."""

    id: int = 1
    claim_count: int = 1
    fail_count: int = 0
    errors: tuple[dict[str, Any], ...] = ()


FAILED = Failed(error_type="E", message="m")


def verdict(outcome: Outcome, *, fail_count: int = 0) -> Settlement:
    return settlement_for(outcome, Claim(fail_count=fail_count), RetryPolicy(max_attempts=3))


@pytest.mark.parametrize(
    ("settlement", "name"),
    [
        (verdict(Processed()), "processed"),
        (verdict(FAILED), "retrying"),
        (verdict(FAILED, fail_count=2), "dead"),
        (verdict(Crashed()), "retrying"),
        (verdict(Unprocessable(error_type="E", message="m")), "dead"),
        (verdict(Snooze(timedelta(0))), "snoozed"),
        # A snooze after failures is still a snooze, though fail_count is not zero.
        (verdict(Snooze(timedelta(0)), fail_count=2), "snoozed"),
        (verdict(Released()), "released"),
        (verdict(Released(), fail_count=2), "released"),
        (verdict(Cancel("x")), "cancelled"),
    ],
    ids=lambda value: type(value.outcome).__name__ if isinstance(value, Settlement) else None,
)
def test_each_verdict_has_its_column(settlement: Settlement, name: str) -> None:
    """Four verdicts leave a row pending; the report tells them apart."""
    assert verdict_of(settlement) == name


def test_tally_becomes_a_report() -> None:
    """Totals and per type; `failed` is derived, so that it can't disagree."""
    tally = Tally()
    tally.add("claimed", 4)
    tally.add("lost_leases")
    tally.settled([("a", verdict(Processed()))])
    tally.settled([("a", verdict(FAILED)), ("b", verdict(FAILED, fail_count=2))])

    report = tally.report()

    assert (report.claimed, report.processed, report.retrying, report.dead, report.lost_leases) == (4, 1, 1, 1, 1)
    assert report.failed == 2
    assert report.by_type == {"a": {"processed": 1, "retrying": 1}, "b": {"dead": 1}}


def test_tally_counts_from_many_threads() -> None:
    """Verdicts are counted by the keeper, dispatches by the dispatcher's threads."""
    tally = Tally()
    settlement = verdict(Processed())

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(lambda: [tally.settled([("a", settlement)]) for _ in range(2_000)])

    assert tally.report().processed == tally.report().by_type["a"]["processed"] == 16_000


def test_misspelt_count_is_refused() -> None:
    """A typo must not vanish into a counter that nobody reads."""
    tally = Tally()
    tally.add("procesed")

    with pytest.raises(TypeError, match="procesed"):
        tally.report()


@pytest.mark.parametrize(
    ("report", "is_empty"),
    [
        (DispatchReport(), True),
        (DispatchReport(claimed=1), False),
        (DispatchReport(rescued=1), False),
        (DispatchReport(unroutable=1), False),
        (DispatchReport(lost_leases=1), False),
    ],
)
def test_report_is_empty_only_when_nothing_happened(report: DispatchReport, is_empty: bool) -> None:
    """An empty report makes no artifact; one that lost a lease must."""
    assert report.is_empty is is_empty


def test_report_is_one_json_document() -> None:
    """For `--json`, with the derived count in it."""
    report = DispatchReport(claimed=2, retrying=1, dead=1, by_type={"a": {"dead": 1}})

    assert json.loads(json.dumps(report.as_dict()))["failed"] == 2


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (DispatchReport(), "nothing was due"),
        (
            DispatchReport(claimed=12_345, processed=12_344, lost_leases=1),
            "claimed 12,345, processed 12,344, lost leases 1",
        ),
        (DispatchReport(claimed=1, dead=1), "claimed 1, dead 1, failed 1"),
    ],
)
def test_summary_says_what_is_not_zero(report: DispatchReport, summary: str) -> None:
    """The one line that is read every minute."""
    assert report.summary() == summary


def test_markdown_has_a_row_for_each_type_and_the_sum() -> None:
    """The artifact in the Prefect UI."""
    report = DispatchReport(claimed=3, processed=2, dead=1, by_type={"b": {"dead": 1}, "a": {"processed": 2}})

    lines = report.as_markdown().splitlines()

    assert lines[-3:] == [
        "| a | 2 | 0 | 0 | 0 | 0 | 0 |",
        "| b | 0 | 0 | 1 | 0 | 0 | 0 |",
        "| **all** | **2** | **0** | **1** | **0** | **0** | **0** |",
    ]


@pytest.mark.parametrize(
    ("hostile", "is_harmless"),
    [
        ("a|b", lambda line: line.count("|") - line.count("\\|") == 8),
        ("<script>alert(1)</script>", lambda line: "<script>" not in line.replace("\\<", "")),
        ("[x](javascript:1)", lambda line: "[x](" not in line),
        ("a\nb | c", lambda line: line.count("|") - line.count("\\|") == 8),
    ],
)
def test_type_can_not_break_the_table(hostile: str, is_harmless: Callable[[str], bool]) -> None:
    """Types are written by anyone who may INSERT, also past the library's validation."""
    report = DispatchReport(dead=1, by_type={hostile: {"dead": 1}})

    lines = report.as_markdown().splitlines()

    assert len(lines) == len(DispatchReport(dead=1, by_type={"a": {"dead": 1}}).as_markdown().splitlines())
    assert is_harmless(lines[-2])
