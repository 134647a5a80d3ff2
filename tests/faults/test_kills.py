"""SIGKILL at each statement of an action's life.

What is left behind is what design §5 promises, and nothing is lost.
"""

from __future__ import annotations

import signal
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from tests.faults.failpoints import VARIABLE
from tests.kit.lives import said
from tests.kit.processes import Child, Processes
from tests.kit.tables import TABLE, add, by_status, claim_due, expire_leases, make_due, row, verdicts

MOMENTS = ("before", "after", "after-commit")
POLICY = RetryPolicy(backoff=timedelta(0))

# What a life that ended there leaves of the row that it claimed: (status, fail_count, run_id), and what it had said
# by then.
LEFT_BEHIND: dict[str, tuple[dict[str, Any], str | None]] = {
    "survey:before": ({"status": "pending"}, None),
    "survey:after": ({"status": "pending"}, None),
    "survey:after-commit": ({"status": "pending"}, None),
    "rescue:before": ({"status": "pending"}, None),
    "rescue:after": ({"status": "pending"}, None),
    "rescue:after-commit": ({"status": "pending"}, None),
    "claim:before": ({"status": "pending", "claim_count": 0}, "rescued"),
    "claim:after": ({"status": "pending", "claim_count": 0}, "rescued"),
    "claim:after-commit": ({"status": "claimed", "claim_count": 1, "run_id": None}, "rescued"),
    "begin:before": ({"status": "claimed", "run_id": None}, "claimed"),
    "begin:after": ({"status": "claimed", "run_id": None}, "claimed"),
    "begin:after-commit": ({"status": "claimed", "run_id": "run-1"}, "claimed"),
    "renew:before": ({"status": "claimed", "run_id": "run-1"}, "begun"),
    "renew:after": ({"status": "claimed", "run_id": "run-1"}, "begun"),
    "renew:after-commit": ({"status": "claimed", "run_id": "run-1"}, "begun"),
    "settle:before": ({"status": "claimed", "run_id": "run-1", "fail_count": 0}, "executed"),
    "settle:after": ({"status": "claimed", "run_id": "run-1", "fail_count": 0}, "executed"),
    "settle:after-commit": ({"status": "processed", "claim_count": 1}, "executed"),
}
RELEASED: dict[str, dict[str, Any]] = {
    "settle:before": {"status": "claimed"},
    "settle:after": {"status": "claimed"},
    "settle:after-commit": {"status": "pending", "fail_count": 0, "claimed_by": None},
}


def killed(children: Processes, failpoint: str, *arguments: str) -> Child:
    """A life that came to the failpoint and was killed there."""
    child = children.python("-m", "tests.kit.lives", *arguments, env={VARIABLE: f"{failpoint}:kill"})
    assert child.wait() == -signal.SIGKILL, child.errors
    return child


def heal(engine: Engine) -> None:
    """A healthy pass, once the dead one's lease is over: rescue, claim, settle, until all is terminal."""
    expire_leases(engine, *operations.find_ids(engine, status="claimed"))
    rescue(engine, TABLE, lambda _: POLICY, limit=10)
    make_due(engine, *operations.find_ids(engine, status="pending"))
    settle(engine, TABLE, verdicts(Processed(), claim_due(engine)))


@pytest.mark.parametrize("failpoint", LEFT_BEHIND)
def test_kill_leaves_what_is_promised_and_loses_nothing(
    engine: Engine, database_url: str, children: Processes, failpoint: str
) -> None:
    """Before the commit nothing has happened, after it all has.

    A repeat is explained by a crash that is written down (S5, S7).
    """
    id_ = add(engine)
    expected, last_said = LEFT_BEHIND[failpoint]

    child = killed(children, failpoint, "live", database_url)

    found = row(engine, id_)
    assert {name: getattr(found, name) for name in expected} == expected
    assert (list(said(child.output)) or [None])[-1] == last_said
    executed_before = "executed" in said(child.output)

    heal(engine)

    after = row(engine, id_)
    was_claimed, was_settled = expected["status"] != "pending", expected["status"] == "processed"
    assert by_status(engine) == {"processed": 1}
    assert after.claim_count == (1 if was_settled or not was_claimed else 2)
    assert after.fail_count == (1 if was_claimed and not was_settled else 0)
    assert [error["kind"] for error in after.errors] == ["crashed"] * after.fail_count
    if executed_before and not was_settled:
        assert "the-one-that-dies" in after.errors[0]["message"], "the repeat must be explained"


@pytest.mark.parametrize("failpoint", RELEASED)
def test_kill_while_releasing_costs_an_attempt_at_most(
    engine: Engine, database_url: str, children: Processes, failpoint: str
) -> None:
    """Given back or left to its lease: pending again either way, and nothing was executed."""
    id_ = add(engine)

    killed(children, failpoint, "live", database_url, "release")

    found = row(engine, id_)
    assert {name: getattr(found, name) for name in RELEASED[failpoint]} == RELEASED[failpoint]

    heal(engine)

    assert by_status(engine) == {"processed": 1}
    assert row(engine, id_).fail_count == (0 if found.status == "pending" else 1)


@pytest.mark.parametrize(
    "failpoint", ["rescue:after", "rescue:after-commit", "settle:before", "settle:after", "settle:after-commit"]
)
def test_rescuer_that_is_killed_has_rescued_all_or_nothing(
    engine: Engine, database_url: str, children: Processes, failpoint: str
) -> None:
    """Found and written in one transaction: a crash is counted once, never twice and never not at all."""
    id_ = add(engine)
    claim_due(engine)
    expire_leases(engine, id_)

    killed(children, failpoint, "live", database_url)

    was_rescued = failpoint.endswith("after-commit")
    assert row(engine, id_).status == ("pending" if was_rescued else "claimed")
    assert row(engine, id_).fail_count == (1 if was_rescued else 0)

    heal(engine)

    after = row(engine, id_)
    assert (after.status, after.fail_count, after.claim_count) == ("processed", 1, 2)


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_while_publishing_leaves_all_or_nothing(
    engine: Engine, database_url: str, children: Processes, moment: str
) -> None:
    """S4: before the commit nothing is there, after it both are, whether the publisher heard of it or not."""
    killed(children, f"publish:{moment}", "publish", database_url)

    assert by_status(engine) == ({"pending": 2} if moment == "after-commit" else {})

    heal(engine)

    assert by_status(engine) == ({"processed": 2} if moment == "after-commit" else {})
