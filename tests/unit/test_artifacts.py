"""The artifact of a batch: what it says, and that no run depends on it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_claim_dispatch import Action, processor
from prefect_claim_dispatch.actions import Lease
from prefect_claim_dispatch.dispatching import artifacts
from prefect_claim_dispatch.dispatching.artifacts import Artifacts, as_markdown, ranges
from prefect_claim_dispatch.dispatching.batches import Batch
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.processors import Registry
from tests.kit.processes import free_port

pytestmark = pytest.mark.timeout(60)
SECRET = "canary-of-a-payload"


def batch_of(*types: str) -> Batch:
    """Rows 1, 2, ... of these types; their payload must not be told."""
    registry = Registry()

    @processor("*", registry=registry, rows_per_run=10)
    def work(payload: dict[str, str]) -> None:
        if payload["fails"]:
            raise ValueError(SECRET)

    found = registry.match("a")
    assert found is not None
    now = datetime.now(UTC)
    works: list[Work] = []
    for id_, type_ in enumerate(types, start=1):
        payload = {"secret": SECRET, "fails": "yes" if type_ == "bad" else ""}
        action = Action(
            id=id_,
            type=type_,
            payload=payload,
            end_at=now,
            created_at=now,
            claim_count=1,
            lease=Lease(expires=math.inf),
        )
        works.append(Work(action, found, {"payload": payload}, on_begin=lambda *_: None, on_outcome=lambda *_: None))
    return Batch(works)


def test_table_tells_how_many_of_which_type_ended_how_and_which() -> None:
    """Whoever looks at the run finds the rows, and nothing of what is in them."""
    batch = batch_of("a", "a", "bad", "a", "b|`x")
    batch.run("run")

    told = as_markdown(batch)

    assert told.splitlines()[2:] == [
        "| `a` | processed | 3 | #1 to #2, #4 |",
        "| `bad` | failed | 1 | #3 |",
        "| `b\\|'x` | processed | 1 | #5 |",
    ]
    assert SECRET not in told


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([], ""),
        ([7], "#7"),
        ([3, 1, 2], "#1 to #3"),
        ([1, 2, 4, 6, 7], "#1 to #2, #4, #6 to #7"),
        (range(1, 10**6), "#1 to #999999"),
        (range(0, 240, 2), ", ".join(f"#{n}" for n in range(0, 200, 2)) + " and 20 more"),
    ],
)
def test_ids_that_follow_one_another_are_one_range(ids: range | list[int], told: str) -> None:
    """A line stays readable, and bounded, however many there are."""
    assert ranges(ids) == told


def test_api_that_is_away_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    """The table says what happened: without the artifact nothing is lost, and the flow's end does not hang on it."""
    batch = batch_of("a", "a")
    batch.run("run")

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        sending = Artifacts()
        sending.tell(batch, task_run_id="11111111-1111-1111-1111-111111111111")
        sending.close()

    assert "the artifact of a batch could not be sent" in caplog.text


def test_artifacts_beyond_what_may_wait_are_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is slower than the batches must not fill the memory."""
    monkeypatch.setattr(artifacts, "END_SECONDS", 0.1)
    batch = batch_of("a", "bad")
    batch.run("run")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        sending = Artifacts()
        for _ in range(artifacts.MOST_WAITING + 3):
            sending.tell(batch, task_run_id="11111111-1111-1111-1111-111111111111")
        sending.close()

    assert "is left out" in caplog.text


def test_flood_of_good_news_is_told_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens of batches a second would cost the server as many requests; what failed is told always."""
    monkeypatch.setattr("prefect_claim_dispatch.dispatching.grouping.elapsed_clock", lambda: 0.0)
    good, bad = batch_of("a", "a"), batch_of("a", "bad")
    told: list[str] = []
    for batch in (good, bad):
        batch.run("run")
    sending = Artifacts()
    monkeypatch.setattr(sending, "_send_all", lambda: None)
    monkeypatch.setattr(sending._waiting, "put_nowait", lambda document: told.append(document["description"]))
    for batch in (good, good, good, bad, good, bad):
        sending.tell(batch, task_run_id="11111111-1111-1111-1111-111111111111")

    assert told == [good.summary] * artifacts.PER_SECOND + [bad.summary] * 2
