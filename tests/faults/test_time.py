"""Clocks that are wrong: the application's by an hour, the database's stepping back, the hour that summer time takes.

What is due, and how long a lease lasts, is the database's to say (S8); how long it may be relied on is told by a clock
that nobody can set.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import claiming, clocks, publish
from prefect_claim_dispatch.errors import InvalidInstantError
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from tests.kit.lives import said
from tests.kit.processes import Processes
from tests.kit.tables import LEASE, POLICY, TABLE, claim_due, row, verdicts

# Runs before anything of ours is imported: a process whose clock is wrong, as far as Python can tell.
SKEWED = """
import datetime, sys, time
SECONDS, STEP = float(sys.argv[1]), float(sys.argv[2])
right, asked = time.time, 0
def wrong():
    global asked
    asked += 1  # each look at the clock finds it stepped back a little more
    return right() + SECONDS - asked * STEP
class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(wrong(), tz)
    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(wrong(), datetime.timezone.utc).replace(tzinfo=None)
time.time, datetime.datetime = wrong, Skewed
sys.argv = ["lives", *sys.argv[3:]]
from tests.kit import lives
from prefect_claim_dispatch import publish
lives.say(wall=datetime.datetime.now(datetime.timezone.utc).isoformat())
publish(sys.argv[2], "later", delay=datetime.timedelta(minutes=30))
publish(sys.argv[2], "now")
lives.main(*sys.argv[1:])
"""


def lived(children: Processes, url: str, *, seconds: float = 0, step: float = 0) -> dict[str, Any]:
    """What a process with such a clock did with two rows of its own, one due now and one in half an hour."""
    child = children.python("-c", SKEWED, str(seconds), str(step), "live", url)
    return said(child.expect_success())


@pytest.mark.parametrize("hours", [-1, 1])
def test_application_clock_an_hour_off_changes_nothing(
    engine: Engine, database_url: str, children: Processes, hours: int
) -> None:
    """S8: the row in half an hour is not claimed early, the row of now not late, and delays are the database's."""
    facts = lived(children, database_url, seconds=hours * 3600)

    skew = datetime.fromisoformat(facts["wall"]) - datetime.now(UTC)
    later, now = row(engine, 1), row(engine, 2)
    assert abs(skew - timedelta(hours=hours)) < timedelta(minutes=5), "the clock was not wrong: nothing was shown"
    assert facts["settled"] == [2]
    assert (later.status, later.claim_count, now.status) == ("pending", 0, "processed")
    assert later.end_at - later.created_at == timedelta(minutes=30)
    assert abs(now.processed_at - now.now) < timedelta(minutes=1)


def test_application_clock_that_steps_back_keeps_its_leases(
    engine: Engine, database_url: str, children: Processes
) -> None:
    """Ten minutes back at every look: leases are judged by a clock that only goes forward."""
    facts = lived(children, database_url, step=600)

    assert facts["settled"] == [2]
    assert row(engine, 2).status == "processed"


def test_database_clock_a_minute_back_ends_no_lease_and_makes_none_immortal(engine: Engine) -> None:
    """A failover to a server whose clock is behind: what is held stays held, and what is dead is still rescued."""
    at = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
    with clocks.stopped(at):
        publish(engine, "a")
        (raw,) = claim_due(engine)
    with clocks.stopped(at - timedelta(minutes=1)):
        assert rescue(engine, TABLE, lambda _: POLICY, limit=10) == []
        assert claim_due(engine) == []
        assert claiming.renew(engine, TABLE, [(raw.id, raw.claim_count)], lease=LEASE) == {raw.id}
    with clocks.stopped(at + LEASE - timedelta(seconds=61)):
        assert rescue(engine, TABLE, lambda _: POLICY, limit=10) == []
    with clocks.stopped(at + LEASE + timedelta(seconds=1)):
        assert [settlement.id for settlement in rescue(engine, TABLE, lambda _: POLICY, limit=10)] == [raw.id]
        assert settle(engine, TABLE, verdicts(Processed(), [raw])) == set()


def test_verdict_is_taken_while_the_database_clock_is_behind(engine: Engine) -> None:
    """The constraints that tie instants to each other must not refuse a row whose end is before its beginning."""
    at = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
    with clocks.stopped(at):
        publish(engine, "a")
        (raw,) = claim_due(engine)
    with clocks.stopped(at - timedelta(minutes=1)):
        assert settle(engine, TABLE, verdicts(Processed(), [raw])) == {raw.id}

    assert row(engine, raw.id).status == "processed"


def test_row_that_was_due_waits_again_when_the_clock_steps_back(engine: Engine) -> None:
    """S8, also then: what is due is asked anew in the statement that claims."""
    at = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
    with clocks.stopped(at):
        publish(engine, "a", end_at=at)
        lanes = claiming.survey(engine, TABLE).due()
    with clocks.stopped(at - timedelta(minutes=1)):
        assert claiming.claim(engine, TABLE, lanes, limit=1, lease=LEASE, claimed_by="early") == []
    with clocks.stopped(at):
        assert len(claiming.claim(engine, TABLE, lanes, limit=1, lease=LEASE, claimed_by="in time")) == 1


@pytest.mark.parametrize("change", ["2030-03-31T02:00:00+01:00", "2030-10-27T03:00:00+02:00"], ids=["spring", "autumn"])
def test_lease_over_the_change_of_summer_time_lasts_as_long_as_ever(engine: Engine, change: str) -> None:
    """Claimed two minutes before the clocks are changed: held three minutes after it, rescued after five."""
    at = datetime.fromisoformat(change).astimezone(UTC) - timedelta(minutes=2)
    with clocks.stopped(at.astimezone(ZoneInfo("Europe/Berlin"))):
        publish(engine, "a")
        publish(engine, "b", delay=timedelta(minutes=10))
        (raw,) = claim_due(engine, "a")
    with clocks.stopped(at + LEASE - timedelta(seconds=1)):
        assert rescue(engine, TABLE, lambda _: POLICY, limit=10) == []
        assert claim_due(engine) == []
    with clocks.stopped(at + LEASE + timedelta(seconds=1)):
        assert [settlement.id for settlement in rescue(engine, TABLE, lambda _: POLICY, limit=10)] == [raw.id]
    with clocks.stopped(at + timedelta(minutes=10)):
        assert [claimed.type for claimed in claim_due(engine, "b")] == ["b"]


def test_instant_without_a_zone_is_refused(engine: Engine) -> None:
    """Twice in autumn and never in spring: which of them was meant, nobody can tell afterwards."""
    with pytest.raises(InvalidInstantError, match="time zone"):
        publish(engine, "a", end_at=datetime(2030, 10, 27, 2, 30))  # noqa: DTZ001 - that is what is refused
