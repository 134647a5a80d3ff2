"""What is done to the stage: faults dealt from a shuffled pack, so that even a short soak has each of them."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.kit.postgres import Server, StopMode
from tests.kit.proxy import COMMIT, Proxy
from tests.soak.stage import CLAIMING, Member, Stage

KILL = "kill"
STOP = "stop"
STOP_WRITER = "stop, with SQLite's one write lock in hand"
DISTURBING = frozenset({"restart fast", "restart immediate", "terminate", "delay", "blackhole", "cut", STOP_WRITER})
"""What happens to the database, and so to everybody: how soon the dead one's rows begin again is then another story."""

GOING_ON = 2
"""So many that have claimed in this life of theirs are always left alone; one that is starting takes nothing over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: monotonic instants of its beginning and end; *pid*: the process it was done to."""

    what: str
    at: float
    until: float
    pid: int = 0


@dataclass(kw_only=True)
class Chaos:
    """Breaks *stage*, as *dice* fall; *done* is what it did."""

    stage: Stage
    dice: random.Random
    done: list[Fault] = field(default_factory=list[Fault])
    _heals_at: dict[str, float] = field(default_factory=dict[str, float])
    _put_off: list[Callable[[], bool]] = field(default_factory=list[Callable[[], bool]])

    def run(self, until: float) -> None:
        """Break things until the monotonic instant *until*; whoever ended is started anew."""
        faults, next_at = self._dealt(), time.monotonic()
        while (now := time.monotonic()) < until:
            self._heal_what_is_over(now)
            self.stage.restart_dead()
            if now >= next_at:
                self._deal(faults)
                next_at = time.monotonic() + self.dice.uniform(0.5, 1.5) * self.stage.scenario.pause_seconds
            time.sleep(0.02)

    def heal(self) -> float:
        """End every fault, and have everybody run; the monotonic instant at which that was so."""
        for proxy in self.stage.proxies.values():
            proxy.heal()
        for member in self.stage.members:
            if member.resumes_at is not None:
                member.resumes_at = 0.0
        self.stage.restart_dead()
        return time.monotonic()

    def _deal(self, faults: Iterator[Callable[[], bool]]) -> None:
        """Cause the first fault that can be caused now; what can't waits for a better moment, so none is left out."""
        for fault in self._put_off:
            if fault():
                self._put_off.remove(fault)
                return
        fault = next(faults)
        if not fault():
            self._put_off.append(fault)

    def _dealt(self) -> Iterator[Callable[[], bool]]:
        """Each fault once, for the sake of the shortest soak; then all of the pack, shuffled, again and again."""
        pack = self._pack()
        first = [fault for fault, _ in pack]
        self.dice.shuffle(first)
        yield from first
        while True:
            dealt = [fault for fault, number in pack for _ in range(number)]
            self.dice.shuffle(dealt)
            yield from dealt

    def _pack(self) -> list[tuple[Callable[[], bool], int]]:
        everywhere = [(self._stop, 8), (self._kill, 4), (self._tell_to_end, 2), (self._kill_publisher, 1)]
        stage = self.stage
        if stage.server is None:
            return everywhere
        server, claiming, publishing = stage.server, stage.proxies["claiming"], stage.proxies["publishing"]
        return [
            *everywhere,
            (lambda: self._terminate(server), 2),
            (lambda: self._lose_commit(claiming), 3),
            (lambda: self._lose_commit(publishing), 3),
            (lambda: self._restart(server, "fast"), 1),
            (lambda: self._restart(server, "immediate"), 1),
            (lambda: self._disturb("delay", claiming, lambda: claiming.delay(self.dice.uniform(0.05, 0.3)), 1.0), 1),
            (lambda: self._disturb("blackhole", claiming, claiming.blackhole, 1.2), 1),
            (lambda: self._disturb("cut", claiming, claiming.cut, 0.6), 1),
            (lambda: self._disturb("cut", publishing, publishing.cut, 0.3), 1),
        ]

    def _kill(self) -> bool:
        return self._end_one(KILL, signal.SIGKILL, *CLAIMING)

    def _kill_publisher(self) -> bool:
        return self._end_one("kill a publisher", signal.SIGKILL, "publisher")

    def _tell_to_end(self) -> bool:
        return self._end_one("terminate a process", signal.SIGTERM, *CLAIMING)

    def _end_one(self, what: str, how: signal.Signals, *kinds: str) -> bool:
        member = self._one_of(*kinds)
        if member is None:
            return False
        self._note(what, pid=member.child.pid)
        member.is_told_to_end = True
        member.child.send(how)
        return True

    def _stop(self) -> bool:
        member = self._one_of(*CLAIMING)
        if member is None:
            return False
        # Longer than the lease, with time for another to take its rows: what it does when it wakes comes too late.
        seconds = self.stage.scenario.lease_seconds * self.dice.uniform(1.1, 1.8) + 0.5
        member.child.send(signal.SIGSTOP)
        member.resumes_at = time.monotonic() + seconds
        self._note(STOP if self.stage.is_writable() else STOP_WRITER, seconds=seconds, pid=member.child.pid)
        return True

    def _one_of(self, *kinds: str) -> Member | None:
        """One that may be struck: two that claim go on, so that somebody takes over, and has room for it."""
        members = self.stage.of_kind(*kinds)
        if "publisher" in kinds:
            return self.dice.choice(members) if members else None
        claiming = [member for member in members if self.stage.has_claimed(member)]
        spare = [member for member in members if len(claiming) - (member in claiming) >= GOING_ON]
        return self.dice.choice(spare) if spare else None

    def _terminate(self, server: Server) -> bool:
        self._note("terminate")
        server.terminate_backends(self.stage.database)
        return True

    def _restart(self, server: Server, mode: StopMode) -> bool:
        at = time.monotonic()
        server.restart(mode)
        self.done.append(Fault(what=f"restart {mode}", at=at, until=time.monotonic()))
        return True

    def _lose_commit(self, proxy: Proxy) -> bool:
        self._note("lose the answer to a commit")
        proxy.cut_after(COMMIT)
        return True

    def _disturb(self, what: str, proxy: Proxy, do: Callable[[], None], leases: float) -> bool:
        name = next(name for name, one in self.stage.proxies.items() if one is proxy)
        if name in self._heals_at:
            return False
        seconds = self.stage.scenario.lease_seconds * leases * self.dice.uniform(0.5, 1.0)
        do()
        self._heals_at[name] = time.monotonic() + seconds
        self._note(what, seconds=seconds)
        return True

    def _heal_what_is_over(self, now: float) -> None:
        for name, at in list(self._heals_at.items()):
            if now >= at:
                self.stage.proxies[name].heal()
                del self._heals_at[name]

    def _note(self, what: str, *, seconds: float = 0.0, pid: int = 0) -> None:
        at = time.monotonic()
        self.done.append(Fault(what=what, at=at, until=at + seconds, pid=pid))
