"""Signals: a process that is told to end finishes the step that it is in, and then ends.

A handler that raises, as Prefect's for SIGTERM and Python's for Ctrl-C do, raises wherever the main thread is: between
the COMMIT of a claim and the line that remembers what was claimed, whose rows then wait for their lease and lose an
attempt; or inside ``Condition.__enter__``, where the lock is kept for ever. So while a claim flow works, its handlers
wait for the end of a step, though not for long.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType
from typing import Any, Final

from prefect.exceptions import TerminationSignal

PATIENCE: Final = 1.0
"""Seconds that a step has to end: one that waits for a lock of the database's may take far longer."""

HELD: Final = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], Any]


def own(error: BaseException) -> BaseException:
    """*error*, which an author's code has raised by itself.

    Raises:
        BaseException: a signal's handler has raised it, or what it came of: that ends the flow, whatever was called.
            Handlers run in the main thread alone; where no `Signals` hold them, a Ctrl-C can't be told from its like.
    """
    if threading.current_thread() is threading.main_thread():
        seen = list[BaseException]()
        one: BaseException | None = error
        while one is not None and not any(one is other for other in seen):
            if _is_of_handler(one):
                raise one
            seen.append(one)
            one = one.__cause__ or one.__context__
    return error


def _is_of_handler(error: BaseException) -> bool:
    if not _holding:
        return isinstance(error, KeyboardInterrupt | TerminationSignal)
    return any(frame.f_code is Signals._take.__code__ for frame, _ in walk_tb(error.__traceback__))  # pyright: ignore[reportPrivateUsage] # noqa: SLF001


class Signals:
    """What SIGTERM and SIGINT do was decided before; here it is only when: see `held`, `heed`.

    A second signal does not wait, nor does one that came `PATIENCE` seconds ago. A signal that is ignored, or ends the
    process without any handler, is left so; and where another than the main thread works, nothing is changed, for no
    handler runs there.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[int] = []
        self._is_held = False
        self.tell: Callable[[], None] = _nobody
        """Called when one has come, in the main thread, between any two of its instructions."""

    @property
    def have_come(self) -> bool:
        """Whether one waits for `heed`."""
        return bool(self._waiting)

    def heed(self) -> None:
        """The end of a step: call the handlers of what has come, which may raise whatever they like."""
        while self._waiting:
            signum = self._waiting.pop(0)
            self._handlers[signum](signum, None)

    @contextmanager
    def held(self) -> Generator[None]:
        """In the block, handlers wait for `heed`; its end is the last."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for signum in HELD:
            handler = signal.getsignal(signum)
            if callable(handler):
                self._handlers[signum] = handler
                signal.signal(signum, self._take)
        self._is_held = True
        _holding.append(self)
        try:
            yield
        finally:
            self._is_held = False
            _holding.remove(self)
            for signum, handler in self._handlers.items():
                if signal.getsignal(signum) == self._take:  # else somebody, a processor perhaps, has set another
                    signal.signal(signum, handler)
            self.heed()

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self._waiting or not self._is_held:
            self._waiting.clear()
            self._handlers[signum](signum, frame)
            return
        self._waiting.append(signum)
        # Not threading.Thread, whose start takes locks that the interrupted thread may hold.
        _thread.start_new_thread(self._remind, (signum,))
        self.tell()

    def _remind(self, signum: int) -> None:
        """Send it again when it has waited long enough, which makes it the second."""
        time.sleep(PATIENCE)
        if self._waiting and self._is_held:
            signal.pthread_kill(threading.main_thread().ident or 0, signum)


_holding: list[Signals] = []
"""Those that hold the handlers of this process."""


def _nobody() -> None:
    """Nobody waits to be told."""
