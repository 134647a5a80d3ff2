"""Isolation: what kills a child process is told of its action, and kills nothing else."""

from __future__ import annotations

import ctypes
import inspect
import logging
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from prefect import State, flow, task
from prefect.logging import get_run_logger
from prefect.states import Failed

from prefect_claim_dispatch import Action, Cancel, Snooze, publish, testing
from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.dispatching.batches import Batch
from prefect_claim_dispatch.dispatching.isolation import IsolatedError, ProcessorKilledError, call
from prefect_claim_dispatch.dispatching.runs import Desk
from prefect_claim_dispatch.dispatching.work import Work
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.outcomes import Failed as FailedAttempt
from prefect_claim_dispatch.processors import Isolation, Processor, Registry, TaskOptions, processor
from tests.acceptance import processors as other
from tests.kit.processes import exists
from tests.kit.waiting import wait_until


def snoozes() -> Snooze:
    """Comes back later."""
    return Snooze(timedelta(minutes=5))


async def cancels() -> Cancel:
    """Is not wanted, and a coroutine."""
    return Cancel("not wanted")


def exits() -> None:
    """Ends its process without a word."""
    os._exit(7)


def exits_if_even(action: Action) -> None:
    """Does so for every other action."""
    if action.id % 2 == 0:
        exits()


def faults() -> None:
    """Reads where nothing is."""
    ctypes.string_at(0)


def hangs() -> None:
    """Never comes back from C."""
    sum(range(10**12))


def hangs_with_its_pid_told() -> None:
    """Never comes back, and says who it is."""
    Path(os.environ["PID_FILE"]).write_text(str(os.getpid()), encoding="ascii")
    hangs()


def devours() -> None:
    """Wants more memory than it may have."""
    bytearray(1 << 30)


def shouts() -> None:
    """Raises what no one wants to send."""
    raise KeyboardInterrupt("x" * 10_000_000)


def stalls_in_its_answer() -> None:
    """Begins an answer by itself, and never ends it."""
    answers_by_itself(b'["retur')
    hangs()


def dies_in_its_answer() -> None:
    """Begins an answer and is killed."""
    answers_by_itself(b'["retur')
    os.kill(os.getpid(), signal.SIGKILL)


def answers_nonsense_without_end() -> None:
    """Sends what is no answer for as long as someone reads it."""
    while True:
        answers_by_itself(b"x" * 1000)


def answers_by_itself(told: bytes) -> None:
    """Write where the answer goes, as only the hostile or the broken do."""
    frame = inspect.currentframe()
    while frame is not None:
        pipe = frame.f_locals.get("writer")
        if isinstance(pipe, Connection):
            os.write(pipe.fileno(), told)
            return
        frame = frame.f_back
    raise AssertionError


def logs_and_is_killed() -> None:
    """Says something in the ways there are, and has no time for more."""
    get_run_logger().info("nobody asked")  # there is no run, and nothing raises in a drain
    logging.getLogger("app.isolated").info("not at this level")
    logging.getLogger("app.isolated").warning("its last line, %s", "Zoë", extra={"order": 7})
    os.kill(os.getpid(), signal.SIGKILL)


def logs_without_end() -> None:
    """Until it is ended."""
    while True:
        logging.getLogger("app.isolated").warning("on and on")


def leaves_a_child_behind() -> None:
    """Starts a process that outlives its starter, and dies."""
    sleeper = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PID_FILE"]).write_text(str(sleeper.pid), encoding="ascii")
    os._exit(7)


def kills_its_whole_group() -> None:
    """Takes its guardian along."""
    os.killpg(0, signal.SIGKILL)


def fails_as_prefect_has_it() -> State[Any]:
    """Returns a state that is not Completed."""
    return Failed(message="the receiver hung up")


def isolated(
    function: Any, *, timeout: timedelta | None = timedelta(seconds=60), memory_bytes: int | None = None
) -> Any:
    """What *function* comes to in a child."""
    isolation = Isolation(memory_bytes=memory_bytes)
    options = TaskOptions(timeout=timeout)
    processor = Processor(pattern="x", source=function, place="here", options=options, isolation=isolation)
    return call(processor, isolation, {})


def test_an_isolated_processor_answers_as_it_would_in_a_thread() -> None:
    """Sync or not, Snooze and Cancel mean the same."""
    assert isolated(snoozes) == Snooze(timedelta(minutes=5))
    assert isolated(cancels) == Cancel("not wanted")


@pytest.mark.parametrize(("function", "ending"), [(exits, "status 7"), (faults, "SIGSEGV")])
def test_a_processor_that_kills_its_process_is_told_as_an_error(function: Any, ending: str) -> None:
    """This process lives on, and says how the child ended."""
    with pytest.raises(ProcessorKilledError, match=ending):
        isolated(function)


@pytest.mark.parametrize("function", [exits, faults, dies_in_its_answer, kills_its_whole_group])
def test_a_dead_child_is_noticed_without_a_time_limit(function: Any) -> None:
    """Nobody waits for an answer that can't come."""
    with pytest.raises(ProcessorKilledError):
        isolated(function, timeout=None)


def test_what_a_child_has_logged_is_logged_though_it_was_killed(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In a drain as in a flow: by the flow's handlers, at the flow's levels, before its failure."""
    registry = Registry()
    processor("x", isolate=True, registry=registry)(logs_and_is_killed)
    publish(sqlite_url, "x")

    with caplog.at_level(logging.WARNING, logger="app.isolated"):
        report = testing.drain(sqlite_url, registry)

    last, failure = caplog.records
    assert report.retrying == 1
    assert (last.name, last.getMessage(), vars(last)["order"]) == ("app.isolated", "its last line, Zoë", 7)
    assert last.process != os.getpid()
    assert (failure.exc_text or "").endswith("ProcessorKilledError: its process was killed by SIGKILL")


def test_child_that_logs_without_end_is_ended_at_its_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who always has something to say must not be listened to for ever, nor fill the flow's memory."""
    with caplog.at_level(logging.ERROR), pytest.raises(TimeoutError, match="time limit") as raised:
        isolated(logs_without_end, timeout=timedelta(seconds=2))

    assert "in logs_without_end" in raised.value.__notes__[0]


def test_half_an_answer_is_waited_for_until_the_time_limit_only() -> None:
    """And is not taken for one."""
    with pytest.raises(TimeoutError, match="time limit"):
        isolated(stalls_in_its_answer, timeout=timedelta(seconds=3))


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    """It would fill the memory of the flow."""
    with pytest.raises(ProcessorKilledError, match="no answer"):
        isolated(answers_nonsense_without_end)


def test_what_a_dead_processor_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its group is killed while its guardian still lives, so that its number can't be another's."""
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))

    with pytest.raises(ProcessorKilledError):
        isolated(leaves_a_child_behind)

    started = int((tmp_path / "pid").read_text(encoding="ascii"))
    wait_until(lambda: not exists(started), description="the end of what it started")


def test_a_failed_state_from_a_child_is_a_failure() -> None:
    """As it is without isolation; it must not pass for processed."""
    with pytest.raises(IsolatedError, match="hung up") as raised:
        isolated(fails_as_prefect_has_it)

    assert type(raised.value).__name__ == "RunFailedError"


def test_the_time_limit_of_an_authors_task_is_the_childs() -> None:
    """In Prefect's hands it would end the wait, and leave the child at work; the registration's goes first."""
    registry = Registry()
    limited = task(timeout_seconds=5)(hangs)
    processor("own", isolate=True, registry=registry)(limited)
    processor("said", isolate=True, timeout=timedelta(seconds=9), registry=registry)(limited)

    own, said = registry.match("own"), registry.match("said")

    assert own is not None
    assert said is not None
    assert (own.time_limit, said.time_limit) == (timedelta(seconds=5), timedelta(seconds=9))
    assert Desk().task_for(own).timeout_seconds is None


def test_the_modules_of_all_isolated_processors_are_loaded_once() -> None:
    """In the template; each child would otherwise import its own again."""
    registry = Registry()
    processor("x", isolate=True, registry=registry)(exits)
    processor("y.*", isolate=True, registry=registry)(other.note)

    assert registry.isolated_modules == (other.__name__, __name__)


def test_an_endless_loop_in_c_ends_at_its_time_limit() -> None:
    """No thread could be stopped there."""
    begun = time.monotonic()

    with pytest.raises(TimeoutError, match="time limit"):
        isolated(hangs, timeout=timedelta(seconds=3))

    assert time.monotonic() - begun < 30


def test_memory_beyond_the_limit_is_an_error_of_that_action() -> None:
    """Not the end of the machine."""
    with pytest.raises(IsolatedError) as raised:
        isolated(devours, memory_bytes=200 << 20)

    assert type(raised.value).__name__ == "MemoryError"


def test_a_base_exception_with_an_enormous_text_comes_back_short() -> None:
    """The pipe carries an excerpt."""
    with pytest.raises(IsolatedError) as raised:
        isolated(shouts)

    assert type(raised.value).__name__ == "KeyboardInterrupt"
    assert len(str(raised.value)) <= 1000


def test_a_flow_or_a_function_without_a_name_of_its_own_is_refused_isolation() -> None:
    """At import, before anything is claimed."""

    def local() -> None: ...

    with pytest.raises(RegistrationError, match="is a flow"):
        processor("x", isolate=True, registry=Registry())(flow(snoozes))
    with pytest.raises(RegistrationError, match="can't be imported by its name"):
        processor("x", isolate=True, registry=Registry())(local)


def test_work_of_an_isolated_processor_that_dies_is_a_failed_attempt() -> None:
    """The whole way from the decorator to the outcome, and the attempt is counted like any failure."""
    registry = Registry()
    processor("x", isolate=True, timeout=timedelta(seconds=60), registry=registry)(exits)
    now = datetime.now(UTC)
    lease = Lease(expires=elapsed_clock() + 60)
    action = Action(id=1, type="x", payload={}, end_at=now, created_at=now, claim_count=1, lease=lease)
    known = registry.match("x")
    assert known is not None
    work = Work(action, known, known.arguments(action), on_begin=lambda *_: None, on_outcome=lambda *_: None)

    with pytest.raises(ProcessorKilledError):
        work.run("")
    work.conclude("Failed")

    assert isinstance(work.outcome, FailedAttempt)
    assert work.outcome.error_type == "ProcessorKilledError"


def test_isolated_row_of_a_batch_that_dies_leaves_the_others() -> None:
    """A child for each row: what ends one of them is that row's failure."""
    registry = Registry()
    processor("x", isolate=True, timeout=timedelta(seconds=60), rows_per_run=10, registry=registry)(exits_if_even)
    known = registry.match("x")
    assert known is not None
    now, lease = datetime.now(UTC), Lease(expires=elapsed_clock() + 60)
    actions = [
        Action(id=id_, type="x", payload={}, end_at=now, created_at=now, claim_count=1, lease=lease)
        for id_ in (1, 2, 3)
    ]
    batch = Batch(
        [
            Work(one, known, known.arguments(one), on_begin=lambda *_: None, on_outcome=lambda *_: None)
            for one in actions
        ]
    )

    batch.run("")
    batch.conclude("Completed")

    assert [type(work.outcome).__name__ for work in batch.works] == ["Processed", "Failed", "Processed"]


def test_an_isolated_child_dies_with_its_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would go on working under a lease that nobody renews."""
    told = tmp_path / "pid"
    monkeypatch.setenv("PID_FILE", str(told))
    code = "from tests.faults import test_isolation as t; t.isolated(t.hangs_with_its_pid_told)"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        try:
            # Two processes import Prefect, on a machine that may be busy.
            wait_until(lambda: told.exists() and told.read_text(encoding="ascii") != "", description="work", timeout=50)
        finally:
            parent.kill()

    child = int(told.read_text(encoding="ascii"))
    wait_until(lambda: not exists(child), description="the child's end")
