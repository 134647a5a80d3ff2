"""A flood: how long what a survey saw holds on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from prefect_claim_dispatch.claiming import Survey
from prefect_claim_dispatch.dispatching import flooding
from prefect_claim_dispatch.dispatching.flooding import LEAST, LOOK_EVERY, Flood

SURVEY = Survey(now=datetime(2026, 1, 1, tzinfo=UTC), lanes=(), oldest_lease_at=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock; set its only element."""
    now = [1_000.0]
    monkeypatch.setattr(flooding, "elapsed_clock", lambda: now[0])
    return now


@pytest.fixture
def flood(clock: list[float]) -> Flood:
    """After a survey and a claim that brought all that it asked for."""
    flood = Flood()
    flood.looked(SURVEY)
    flood.claimed(LEAST, of=LEAST)
    return flood


def test_survey_holds_on_while_claims_are_full(flood: Flood, clock: list[float]) -> None:
    """Until it is time to look."""
    clock[0] += LOOK_EVERY * 0.9
    assert flood.survey is SURVEY

    clock[0] += LOOK_EVERY * 0.2
    assert flood.survey is None


def test_full_claims_do_not_put_off_the_next_survey(flood: Flood, clock: list[float]) -> None:
    """Or a pause would never be seen."""
    clock[0] += LOOK_EVERY * 0.9
    flood.claimed(LEAST, of=LEAST)
    clock[0] += LOOK_EVERY * 0.2

    assert flood.survey is None


def test_claim_that_brings_less_ends_it(flood: Flood) -> None:
    """Something changed, or nothing is left."""
    flood.claimed(LEAST, of=LEAST + 1)

    assert flood.survey is None


def test_small_claims_are_no_flood(flood: Flood) -> None:
    """They are full all the time; whoever publishes one after another would keep a run from ending."""
    flood.claimed(LEAST - 1, of=LEAST - 1)

    assert flood.survey is None


def test_it_ends_when_told(flood: Flood) -> None:
    """Where a round claimed nothing."""
    flood.ended()

    assert flood.survey is None


def test_nothing_is_known_before_the_first_survey() -> None:
    """However much was claimed."""
    flood = Flood()
    flood.claimed(LEAST, of=LEAST)

    assert flood.survey is None


def test_survey_that_takes_long_holds_on_while_claims_bring_anything(clock: list[float]) -> None:
    """Of fifty thousand types it takes seconds; asked before each claim, little else would be done."""
    flood = Flood()

    flood.looked(SURVEY, 2.3)
    flood.claimed(64, of=1_000)

    clock[0] += 4.0
    assert flood.survey is SURVEY
    flood.claimed(0, of=1_000)
    assert flood.survey is None
    flood.looked(SURVEY, LOOK_EVERY / 2)
    flood.claimed(64, of=1_000)
    assert flood.survey is None
