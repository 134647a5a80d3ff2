"""Signals wait for the end of a step, a second at most, and no lock is kept by a handler that raises."""

from __future__ import annotations

import ast
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import prefect_claim_dispatch
from prefect_claim_dispatch.dispatching import signals as signals_module
from prefect_claim_dispatch.dispatching.signals import Signals, own
from prefect_claim_dispatch.dispatching.slots import Slots

pytestmark = pytest.mark.timeout(30)
PACKAGE = Path(prefect_claim_dispatch.__file__).parent
FOR_EVER = 3_600.0


class ToldError(BaseException):
    """What the handler raises."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[Any]:
    """A handler for SIGTERM that raises, as Prefect's does."""

    def told(_signum: int, _frame: Any) -> None:
        raise ToldError

    before = signal.signal(signal.SIGTERM, told)
    yield told
    signal.signal(signal.SIGTERM, before)


def send() -> None:
    """SIGTERM to the main thread, which takes it before this returns."""
    signal.raise_signal(signal.SIGTERM)


def sent_in(seconds: float) -> None:
    """The same from another thread, in a while."""
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGTERM)).start()


def test_it_waits_for_the_end_of_the_step() -> None:
    """What was claimed is remembered first."""
    signals, steps = Signals(), list[str]()

    with pytest.raises(ToldError), signals.held():
        send()
        steps.append("the step goes on")
        assert signals.have_come
        signals.heed()
        steps.append("never")

    assert steps == ["the step goes on"]


def test_end_of_the_block_heeds_too(handler: Any) -> None:
    """And the handlers are as they were."""
    signals = Signals()

    with pytest.raises(ToldError), signals.held():
        send()

    assert not signals.have_come
    assert signal.getsignal(signal.SIGTERM) is handler


def by_users_code(raising: Any) -> BaseException:
    """What the guard says of what *raising* raises: the error of its row, unless the flow is to end of it."""
    try:
        raising()
    except BaseException as error:
        return own(error)
    raise AssertionError("it raised nothing")


def test_signal_in_users_code_is_told_from_what_that_raises_itself() -> None:
    """One ends the flow, the other is its row's failure; also where the code has caught it, and raised another."""

    def interrupts_itself() -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        send()
        send()  # the second does not wait

    def interrupted_and_caught() -> None:
        try:
            interrupted()
        except BaseException as error:
            raise ValueError("wrapped") from error

    with Signals().held():
        assert isinstance(by_users_code(interrupts_itself), KeyboardInterrupt)
        for raising in (interrupted, interrupted_and_caught):
            with pytest.raises(ToldError):
                by_users_code(raising)


def test_ctrl_c_that_nobody_holds_is_taken_for_one() -> None:
    """A drain in a test: nothing tells it from its like. In another thread no handler runs: it is the code's own."""

    def interrupts_itself() -> None:
        raise KeyboardInterrupt

    seen = list[BaseException]()
    with pytest.raises(KeyboardInterrupt):
        by_users_code(interrupts_itself)
    other = threading.Thread(target=lambda: seen.append(by_users_code(interrupts_itself)))
    other.start()
    other.join()

    assert isinstance(seen[0], KeyboardInterrupt)


def test_second_signal_does_not_wait() -> None:
    """Whoever sends two means it."""
    signals = Signals()

    with pytest.raises(ToldError), signals.held():
        send()
        send()
        pytest.fail("it was not heard")


def test_step_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a lock of the database's."""
    monkeypatch.setattr(signals_module, "PATIENCE", 0.2)
    signals, began = Signals(), time.monotonic()

    with pytest.raises(ToldError), signals.held():
        send()
        time.sleep(FOR_EVER)

    assert time.monotonic() - began < 10


def test_signal_that_was_heeded_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would end the grace period."""
    monkeypatch.setattr(signals_module, "PATIENCE", 0.1)
    signals = Signals()
    with pytest.raises(ToldError), signals.held():
        send()
        signals.heed()

    time.sleep(0.4)


def test_handler_that_does_not_raise_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application's own, which notes that it was told and lets the flow go on."""
    monkeypatch.setattr(signals_module, "PATIENCE", 0.1)
    told = list[int]()
    signal.signal(signal.SIGTERM, lambda signum, _frame: told.append(signum))
    signals = Signals()

    with signals.held():
        send()
        assert not told
        signals.heed()
        time.sleep(0.3)

    assert told == [signal.SIGTERM]


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_has_no_handler_is_left_alone(disposition: signal.Handlers) -> None:
    """An ignored signal stays ignored, and one that ends the process still ends it."""
    signal.signal(signal.SIGTERM, disposition)

    with Signals().held():
        assert signal.getsignal(signal.SIGTERM) is disposition


def test_handler_that_somebody_sets_meanwhile_stays() -> None:
    """A processor may; it is not ours to take away."""

    def theirs(_signum: int, _frame: Any) -> None:
        """Of a processor's."""

    with Signals().held():
        signal.signal(signal.SIGTERM, theirs)

    assert signal.getsignal(signal.SIGTERM) is theirs


def test_other_threads_change_nothing(handler: Any) -> None:
    """No handler runs there, and none can be set."""
    seen = list[Any]()

    def work() -> None:
        with Signals().held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [handler]


@pytest.mark.parametrize("wait", ["wait_for_one", "wait_for_none", "pause", "doze", "rest"])
def test_whoever_waits_is_told_at_once(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is no step: none of the patience is spent on it."""
    monkeypatch.setattr(signals_module, "PATIENCE", FOR_EVER)
    signals = Signals()
    slots, run = Slots(1, signals), object()
    slots.take(run)  # pyright: ignore[reportArgumentType] - whatever takes a slot
    arguments = () if wait.startswith("wait") else (FOR_EVER,)
    sent_in(0.1)

    with pytest.raises(ToldError), signals.held():
        getattr(slots, wait)(*arguments)

    assert slots.left == 0  # its lock is free


def test_handler_that_does_not_raise_ends_no_wait() -> None:
    """A run that would begin then would be one too many, and a flow that ended would leave its work alone."""
    told = list[int]()
    signal.signal(signal.SIGTERM, lambda signum, _frame: told.append(signum))
    signals = Signals()
    slots, run = Slots(1, signals), object()
    slots.take(run)  # pyright: ignore[reportArgumentType] - as above
    sent_in(0.1)
    threading.Timer(0.5, lambda: slots.free(run)).start()  # pyright: ignore[reportArgumentType]

    with signals.held():
        slots.wait_for_none()

    assert (slots.left, told) == (1, [signal.SIGTERM])


def test_no_lock_is_kept_by_a_handler_that_raises() -> None:
    """Whoever settles would wait for it for ever. As hard as can be: told again and again in a tight loop."""
    slots, wanted = Slots(1), SimpleQueue[bool]()

    def send_when_wanted() -> None:
        while wanted.get():
            time.sleep(0.002)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    threading.Thread(target=send_when_wanted, daemon=True).start()
    for _ in range(100):
        with pytest.raises(ToldError):
            wanted.put(True)
            while True:
                _ = slots.left
    wanted.put(False)

    other = threading.Thread(target=lambda: slots.left, daemon=True)
    other.start()
    other.join(5)
    assert not other.is_alive()


def conditions_entered(tree: ast.Module) -> set[str]:
    """The attributes that are conditions, and are entered by themselves."""
    conditions = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "threading.Condition(" in ast.unparse(node.value)
        for target in node.targets
    }
    entered = {
        ast.unparse(item.context_expr) for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items
    }
    return conditions & entered


def test_condition_that_is_entered_is_found() -> None:
    """The check below can fail."""
    code = "self.lock = threading.RLock()\nself.c = threading.Condition(self.lock)\nwith self.c:\n    pass"

    assert conditions_entered(ast.parse(code)) == {"self.c"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_condition_is_entered_by_itself(path: Path) -> None:
    """`Condition.__enter__` is Python, and a handler that raises in it, once the lock is taken, keeps the lock."""
    assert not conditions_entered(ast.parse(path.read_text()))
