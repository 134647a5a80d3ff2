"""An outage: pauses that grow and stop growing, and two lines in the log however long it lasts."""

from __future__ import annotations

import logging

import pytest

from prefect_claim_dispatch.outages import LONGEST_PAUSE, Outage

TRIES_OF_A_DAY = 20_000


def test_pauses_grow_and_stay_bounded_through_an_outage_of_a_day() -> None:
    """The thread that settles and renews asks for them: an overflow after an hour would end it."""
    outage = Outage("it can't be reached")

    pauses = [outage.failed(OSError("away")) for _ in range(TRIES_OF_A_DAY)]

    assert pauses[0] < pauses[3] < pauses[10]
    assert max(pauses) <= LONGEST_PAUSE * 1.25
    assert min(pauses[10:]) >= LONGEST_PAUSE * 0.75


def test_only_a_change_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A line for every try buries the one that matters."""
    caplog.set_level(logging.WARNING)
    outage = Outage("it can't be reached")

    for error in (OSError("a"), OSError("b"), ValueError("c"), ValueError("d")):
        outage.failed(error)
    outage.ended()
    outage.ended()

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert told[0].endswith(": a")
    assert told[1].endswith(": c")
    assert "over after" in told[2]
    assert not outage.is_on
    assert outage.seconds == 0.0
