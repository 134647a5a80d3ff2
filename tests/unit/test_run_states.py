"""What a run's state means for its row: every state, in every circumstance that changes the answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from prefect_claim_dispatch.dispatching.run_states import LATEST, REFUSED, WITHDRAWN, RunSeen, Step, verdict_on
from prefect_claim_dispatch.outcomes import Cancel, Crashed, Failed, Processed, Released, Snooze
from prefect_claim_dispatch.outstanding import Outstanding

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ROW = Outstanding(
    id=1,
    type="video.encode",
    claim_count=2,
    fail_count=0,
    errors=(),
    claimed_by="deployment:claim-flow",
    run_id="r",
    claimed_at=NOW - timedelta(minutes=10),
    lease_expires_at=NOW + timedelta(minutes=5),
    now=NOW,
)
OVER = replace(ROW, lease_expires_at=NOW - timedelta(seconds=1))
HELD = replace(ROW, claimed_by="deployment:r")
HELD_OVER = replace(OVER, claimed_by="deployment:r")
HOUR = timedelta(hours=1)


def run(type_: str, name: str = "", *, begun: bool = True) -> RunSeen:
    return RunSeen(type=type_, name=name or type_.capitalize(), message="m", has_begun=begun)


FULL = replace(run("CANCELLED", begun=False), message=f"{REFUSED}limit reached.")


@pytest.mark.parametrize("row", [ROW, OVER, HELD, HELD_OVER])
@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (run("COMPLETED"), Processed()),
        (run("COMPLETED", "Snoozed"), Processed()),
        (run("FAILED"), Failed(error_type="RunFailed", message="its run r ended Failed: m")),
        (run("FAILED", "TimedOut"), Failed(error_type="RunTimedOut", message="its run r ended TimedOut: m")),
        (run("CRASHED"), Crashed(reason="its run r crashed: m")),
        (run("CANCELLED"), Cancel("its run r was cancelled in Prefect: m")),
        (run("CANCELLED", begun=False), Cancel("its run r was cancelled in Prefect: m")),
        (run("CANCELLED", WITHDRAWN, begun=False), Released()),
        (FULL, Snooze(timedelta(seconds=30), f"its run r was refused: {FULL.message}")),
        (replace(FULL, has_begun=True), Crashed(reason=f"its run r got no slot for its next try: {FULL.message}")),
    ],
)
def test_run_that_ended_settles_its_row_whatever_the_lease(row: Outstanding, seen: RunSeen, outcome: object) -> None:
    """A terminal run is the only sure sign; leases may have run out while Prefect was away."""
    assert verdict_on(seen, row, queued_at_most=HOUR) == outcome


@pytest.mark.parametrize(("type_", "begun"), [("SCHEDULED", False), ("PENDING", False)])
@pytest.mark.parametrize("row", [ROW, OVER])
def test_run_that_waits_is_withdrawn_after_its_limit_and_not_before(
    row: Outstanding, type_: str, *, begun: bool
) -> None:
    """Counted from the claim by the database's clock; a lease that ran out meanwhile says nothing."""
    seen = run(type_, "Late", begun=begun)

    assert verdict_on(seen, row, queued_at_most=timedelta(minutes=10)) is Step.RENEW
    assert verdict_on(seen, row, queued_at_most=timedelta(minutes=9)) is Step.WITHDRAW


@pytest.mark.parametrize("name", ["AwaitingRetry", "Pending", "Paused", "Running"])
@pytest.mark.parametrize("row", [ROW, OVER])
def test_run_that_has_begun_is_renewed_however_long_ago(row: Outstanding, name: str) -> None:
    """One that waits for Prefect's own retry has begun, and may have done half of its work."""
    type_ = {"AwaitingRetry": "SCHEDULED"}.get(name, name.upper())

    assert verdict_on(run(type_, name), row, queued_at_most=timedelta(seconds=1)) is Step.RENEW


@pytest.mark.parametrize("seen", [run("RUNNING"), run("CANCELLING"), run("CANCELLED", WITHDRAWN), None])
def test_run_that_renews_its_own_lease_is_left_alone(seen: RunSeen | None) -> None:
    """Its process lives, whatever was done to its run in the UI."""
    assert verdict_on(seen, HELD, queued_at_most=timedelta(seconds=1)) is Step.LEAVE


def test_run_that_stopped_renewing_is_called_crashed() -> None:
    """Killed together with its worker it would stay Running for ever, and its row claimed."""
    assert verdict_on(run("RUNNING"), HELD_OVER, queued_at_most=HOUR) is Step.BURY
    assert verdict_on(run("SCHEDULED", "AwaitingRetry"), HELD_OVER, queued_at_most=HOUR) is Step.RENEW
    assert isinstance(verdict_on(run("CANCELLING"), HELD_OVER, queued_at_most=HOUR), Cancel)
    assert isinstance(verdict_on(run("CANCELLED", WITHDRAWN), HELD_OVER, queued_at_most=HOUR), Crashed)


@pytest.mark.parametrize("row", [ROW, OVER, HELD_OVER])
def test_run_that_is_gone_counts_as_a_crash(row: Outstanding) -> None:
    """Nobody can tell how far it had come."""
    assert verdict_on(None, row, queued_at_most=HOUR) == Crashed(reason="its run r was deleted in Prefect")


@pytest.mark.parametrize("row", [ROW, OVER, HELD, HELD_OVER])
@pytest.mark.parametrize("holder", ["claim-flow", "r"])
def test_run_that_another_server_has_is_not_gone(row: Outstanding, holder: str) -> None:
    """Whoever asks the wrong server hears of no run; only the one that made it can say that it was deleted."""
    row = replace(row, claimed_by=f"deployment:{holder}@aaaaaaaaaaaa")

    for server in ("bbbbbbbbbbbb", None):
        assert verdict_on(None, row, queued_at_most=HOUR, server=server) is Step.STRANGE
    assert verdict_on(None, row, queued_at_most=HOUR, server="aaaaaaaaaaaa") is not Step.STRANGE
    assert (row.server, row.is_held_by_its_run) == ("aaaaaaaaaaaa", holder == "r")
    assert verdict_on(run("COMPLETED"), row, queued_at_most=HOUR, server="bbbbbbbbbbbb") == Processed()


def test_refused_runs_are_created_ever_more_rarely() -> None:
    """A deployment that is full for a day must not have a cancelled run for each action and minute."""
    waits = [verdict_on(FULL, replace(ROW, claim_count=count), queued_at_most=HOUR) for count in (1, 2, 5, 6, 7, 5000)]

    assert [wait.delay.total_seconds() for wait in waits if isinstance(wait, Snooze)] == [15, 30, 240, 480, 600, 600]
    assert timedelta(seconds=600) == LATEST


def test_passwords_in_a_state_stay_there() -> None:
    """A state's message becomes an entry of `errors`."""
    seen = replace(run("FAILED"), message="postgresql://ada:secret@db/app is away")

    verdict = verdict_on(seen, ROW, queued_at_most=HOUR)

    assert isinstance(verdict, Failed)
    assert "secret" not in verdict.message
