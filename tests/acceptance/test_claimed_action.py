"""What a deployed flow does with its reference, inside real flow runs of a real server; it needs no worker."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from prefect_claim_dispatch import Cancel, Snooze, claimed_action, deployment_processor, engines, operations
from prefect_claim_dispatch import claimed as claimed_module
from prefect_claim_dispatch.errors import ClaimLostError, ConfigurationError, LostLeaseError
from prefect_claim_dispatch.outcomes import Released
from prefect_claim_dispatch.processors import Registry
from prefect_claim_dispatch.rows import ActionRow
from prefect_claim_dispatch.settling import settle
from tests.kit.deploying import Deployed, look
from tests.kit.prefect_server import PrefectServer
from tests.kit.tables import TABLE, add, change, claim_due, expire_leases, row, seconds_from_now, verdicts
from tests.kit.waiting import wait_until

TYPE = "video.encode"


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """What the statements do on every database is tested beside them."""
    engine = engines.create(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE videos (id INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def deployed(prefect_api: PrefectServer) -> Deployed:
    return Deployed(prefect_api)


@pytest.fixture
def run_of(engine: Engine, deployed: Deployed) -> Callable[..., ActionRow]:
    """Dispatch a row, let a flow be its run, and answer the row; the run's state is in `deployed`."""
    registry = Registry()
    deployment_processor(TYPE, deployment=deployed.name, registry=registry, max_attempts=2, backoff=timedelta(hours=1))

    def run(flow_: Any) -> ActionRow:
        id_ = add(engine, TYPE, payload={"video": 7, "__meta": {"by": "ada"}})
        look(engine, registry)
        deployed.execute(flow_, operations.get(engine, id_).run_id)
        return operations.get(engine, id_)

    return run


def videos(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM videos")).scalar_one()


def test_flow_gets_the_action_from_the_table(engine: Engine, deployed: Deployed, run_of: Any) -> None:
    """Payload and meta never were with Prefect; the block that is left normally is a row that is processed."""
    seen: list[Any] = []

    @flow
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine) as claimed:
            seen.append((claimed.type, claimed.payload, claimed.meta, claimed.attempt, claimed.key))

    after = run_of(encode)

    assert seen == [(TYPE, {"video": 7}, {"by": "ada"}, 1, f"action_logs:{after.id}")]
    assert (after.status, after.fail_count, after.claim_count) == ("processed", 0, 1)
    assert deployed.runs()[0]["state_type"] == "COMPLETED"


def test_settled_together_with_the_business_write(engine: Engine, run_of: Any) -> None:
    """One commit: there is no moment at which the video is there and its action is not done."""

    @flow
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine) as claimed, Session(engine) as session:
            session.execute(text("INSERT INTO videos VALUES (7)"))
            claimed.settle(session)
            session.commit()
            change(engine, claimed.id, errors=[{"kind": "told after"}])

    after = run_of(encode)

    assert (after.status, videos(engine)) == ("processed", 1)
    assert after.errors == ({"kind": "told after"},), "leaving the block wrote once more"


def test_settlement_that_is_rolled_back_fails_with_its_exception(
    engine: Engine, deployed: Deployed, run_of: Any
) -> None:
    """Settle and write go together, in this way too; by the processor's policy, which came with the reference."""

    @flow
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine) as claimed, engine.begin() as connection:
            connection.execute(text("INSERT INTO videos VALUES (7)"))
            claimed.settle(connection)
            msg = "the disk is full"
            raise RuntimeError(msg)

    after = run_of(encode)

    assert (after.status, after.fail_count, after.errors[0]["message"]) == ("pending", 1, "the disk is full")
    assert videos(engine) == 0
    assert deployed.runs()[0]["state_type"] == "FAILED"
    now = row(engine, after.id)
    assert timedelta(minutes=50) < now.end_at - now.now < timedelta(minutes=70)


@pytest.mark.parametrize(
    ("outcome", "status"), [(Snooze(timedelta(hours=1)), "pending"), (Cancel("no such video"), "cancelled")]
)
def test_block_answers_snooze_or_cancel(engine: Engine, run_of: Any, outcome: Snooze | Cancel, status: str) -> None:
    """What a processor returns, a block can't."""

    @flow
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine) as claimed:
            claimed.answer(outcome)

    after = run_of(encode)

    assert (after.status, after.fail_count) == (status, 0)


def test_retries_of_prefect_keep_the_claim(engine: Engine, deployed: Deployed, run_of: Any) -> None:
    """They are tries of one attempt; settled as failed at the first, the row would be given to a second run."""
    tries: list[int] = []

    @flow(retries=1)
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine) as claimed:
            tries.append(claimed.attempt)
            if len(tries) == 1:
                msg = "once"
                raise RuntimeError(msg)

    after = run_of(encode)

    assert (tries, after.status, after.fail_count, after.claim_count) == ([1, 1], "processed", 0, 1)
    assert len(deployed.runs()) == 1


def test_last_retry_of_prefect_settles_the_failure(engine: Engine, run_of: Any) -> None:
    """One attempt, however often Prefect tried."""

    @flow(retries=1)
    def encode(action: dict[str, Any]) -> None:
        with claimed_action(action, bind=engine):
            msg = "always"
            raise RuntimeError(msg)

    after = run_of(encode)

    assert (after.status, after.fail_count) == ("pending", 1)


class Twice:
    """One flow run that Prefect starts twice, in two threads here, as two pods or two workers would."""

    def __init__(self, engine: Engine, deployed: Deployed) -> None:
        self.registry = Registry()
        deployment_processor(TYPE, deployment=deployed.name, registry=self.registry, backoff=timedelta(hours=1))
        self.id = add(engine, TYPE)
        look(engine, self.registry)
        self.run_id = operations.get(engine, self.id).run_id
        self.first_may_go_on, self.began = threading.Event(), list[str]()
        self.errors: list[BaseException] = []
        self._deployed = deployed
        self._threads: list[threading.Thread] = []

        @flow
        def encode(action: dict[str, Any]) -> None:
            with claimed_action(action, bind=engine, lease=timedelta(seconds=30)):
                self.began.append(threading.current_thread().name)
                if self.began == ["first"]:
                    assert self.first_may_go_on.wait(60)

        self._flow = encode

    def start(self, name: str) -> None:
        """Once more, in a thread called *name*."""
        run = contextvars.copy_context().run
        self._threads.append(threading.Thread(target=run, args=(self._execute,), name=name, daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        self.first_may_go_on.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), thread

    def _execute(self) -> None:
        try:
            self._deployed.execute(self._flow, self.run_id)
        except BaseException as error:
            self.errors.append(error)


@pytest.fixture
def twice(engine: Engine, deployed: Deployed) -> Iterator[Twice]:
    twice = Twice(engine, deployed)
    twice.start("first")
    wait_until(lambda: twice.began == ["first"], description="the first process has begun", timeout=30)
    yield twice
    twice.end()


def test_second_process_of_one_run_waits_and_finds_nothing_to_do(
    engine: Engine, twice: Twice, caplog: pytest.LogCaptureFixture
) -> None:
    """Both would do the work at once, under one lease, and neither would know."""
    twice.start("second")
    wait_until(lambda: "another process of this flow run" in caplog.text, description="the second waits", timeout=30)
    assert twice.began == ["first"]

    twice.end()

    assert twice.began == ["first"]
    after = operations.get(engine, twice.id)
    assert (after.status, after.fail_count, after.claim_count) == ("processed", 0, 1)


def test_second_process_of_one_run_goes_on_when_the_first_has_lost_its_lease(
    engine: Engine, twice: Twice, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that was lost is started anew under the same run; its claim is not lost with it."""
    monkeypatch.setattr(claimed_module, "LOOK_EVERY", 0.05)
    twice.start("second")
    wait_until(lambda: "another process of this flow run" in caplog.text, description="the second waits", timeout=30)

    expire_leases(engine, twice.id)

    wait_until(lambda: twice.began == ["first", "second"], description="the second has begun", timeout=30)


def test_next_try_of_prefects_in_another_process_takes_the_claim_at_once(
    engine: Engine, deployed: Deployed, twice: Twice, caplog: pytest.LogCaptureFixture
) -> None:
    """The run crashed, as far as Prefect knows, and it is retried: that is its next try, no second beside it."""
    deployed.set_state(twice.run_id, "CRASHED")
    deployed.set_state(twice.run_id, "SCHEDULED", "AwaitingRetry")

    twice.start("second")

    wait_until(lambda: twice.began == ["first", "second"], description="the second has begun", timeout=30)
    assert "another process" not in caplog.text


def claimed_here(engine: Engine) -> dict[str, Any]:
    """A claim, and its reference as an author may write it down himself."""
    add(engine, TYPE)
    (raw,) = claim_due(engine)
    return {"table": "action_logs", "id": raw.id, "claim_count": raw.claim_count}


def test_lease_is_renewed_while_the_block_lasts(engine: Engine) -> None:
    """Outside of a flow run too, as in a test of the flow's function."""
    reference = claimed_here(engine)
    with claimed_action(reference, bind=engine, lease=timedelta(seconds=1)):
        change(engine, reference["id"], lease_expires_at=seconds_from_now(0.9))
        before = row(engine, reference["id"]).lease_expires_at

        wait_until(lambda: row(engine, reference["id"]).lease_expires_at > before, description="the lease is renewed")

    assert row(engine, reference["id"]).status == "processed"


def test_claim_that_was_lost_meanwhile_fails_the_run(engine: Engine) -> None:
    """The work may be done again: a run that is Completed would say otherwise."""
    reference = claimed_here(engine)

    with pytest.raises(LostLeaseError), claimed_action(reference, bind=engine) as claimed:
        settle(engine, TABLE, verdicts(Released(), [claimed]))  # type: ignore[list-item] - has what a verdict looks at

    assert row(engine, reference["id"]).status == "pending"


def test_claim_that_is_over_is_refused_before_any_effect(engine: Engine) -> None:
    """The error says that there is nothing to do, and pickles like all of ours."""
    reference = claimed_here(engine)
    with claimed_action(reference, bind=engine):
        pass

    with pytest.raises(ClaimLostError) as refused, claimed_action(reference, bind=engine):
        pytest.fail("it began")

    assert (refused.value.action_id, refused.value.claim_count, refused.value.table) == (reference["id"], 1, TABLE.name)
    assert isinstance(refused.value, LostLeaseError)


@pytest.mark.parametrize("reference", [{}, {"id": "x", "claim_count": 1}, {"id": 1}, None, 7])
def test_reference_that_is_none_is_refused(engine: Engine, reference: Any) -> None:
    """A deployment run by hand, without the parameter."""
    with pytest.raises(ConfigurationError, match="parameter 'action'"), claimed_action(reference, bind=engine):
        pytest.fail("it began")


def test_payload_that_is_no_json_goes_dead(engine: Engine) -> None:
    """Decoded when the run began, it can have been changed behind our back since it was claimed."""
    reference = claimed_here(engine)
    change(engine, reference["id"], payload=[1])

    with pytest.raises(TypeError), claimed_action(reference, bind=engine):
        pytest.fail("it began")

    assert row(engine, reference["id"]).status == "dead"
