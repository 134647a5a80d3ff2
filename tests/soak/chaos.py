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

DISTURBING = frozenset({"restart fast", "restart immediate", "terminate", "delay", "blackhole", "cut"})
"""What happens to the database, and so to everybody: how soon the dead one's rows begin again is then another story."""


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

    def run(self, until: float) -> None:
        """Break things until the monotonic instant *until*; whoever ended is started anew."""
        faults, next_at = self._dealt(), time.monotonic()
        while (now := time.monotonic()) < until:
            self._heal_what_is_over(now)
            self.stage.restart_dead()
            if now >= next_at:
                next(faults)()
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

    def _dealt(self) -> Iterator[Callable[[], None]]:
        pack = self._pack()
        while True:
            self.dice.shuffle(pack)
            yield from pack

    def _pack(self) -> list[Callable[[], None]]:
        everywhere = [*[self._stop] * 8, *[self._kill] * 4, *[self._tell_to_end] * 2, self._kill_publisher]
        stage = self.stage
        if stage.server is None:
            return everywhere
        server, claiming, publishing = stage.server, stage.proxies["claiming"], stage.proxies["publishing"]
        return [
            *everywhere,
            *[lambda: self._terminate(server)] * 2,
            *[lambda: self._lose_commit(claiming)] * 3,
            *[lambda: self._lose_commit(publishing)] * 3,
            lambda: self._restart(server, "fast"),
            lambda: self._restart(server, "immediate"),
            lambda: self._disturb("delay", claiming, lambda: claiming.delay(self.dice.uniform(0.05, 0.3)), 1.0),
            lambda: self._disturb("blackhole", claiming, claiming.blackhole, 1.2),
            lambda: self._disturb("cut", claiming, claiming.cut, 0.6),
            lambda: self._disturb("cut", publishing, publishing.cut, 0.3),
        ]

    def _kill(self) -> None:
        for member in self._one_of(*CLAIMING):
            self._note("kill", pid=member.child.pid)
            member.is_told_to_end = True
            member.child.kill()

    def _kill_publisher(self) -> None:
        for member in self._one_of("publisher"):
            self._note("kill a publisher", pid=member.child.pid)
            member.is_told_to_end = True
            member.child.kill()

    def _tell_to_end(self) -> None:
        for member in self._one_of(*CLAIMING):
            self._note("terminate a process", pid=member.child.pid)
            member.is_told_to_end = True
            member.child.terminate()

    def _stop(self) -> None:
        # Longer than the lease, with time for another to take its rows: what it does when it wakes comes too late.
        for member in self._one_of(*CLAIMING):
            seconds = self.stage.scenario.lease_seconds * self.dice.uniform(1.1, 1.8) + 0.5
            member.child.send(signal.SIGSTOP)
            member.resumes_at = time.monotonic() + seconds
            self._note("stop", seconds=seconds, pid=member.child.pid)

    def _one_of(self, *kinds: str) -> list[Member]:
        members = self.stage.of_kind(*kinds)
        # Two at least go on, so that somebody takes over, and has room for it.
        return [self.dice.choice(members)] if len(members) > 2 or ("publisher" in kinds and members) else []

    def _terminate(self, server: Server) -> None:
        self._note("terminate")
        server.terminate_backends(self.stage.database)

    def _restart(self, server: Server, mode: StopMode) -> None:
        at = time.monotonic()
        server.restart(mode)
        self.done.append(Fault(what=f"restart {mode}", at=at, until=time.monotonic()))

    def _lose_commit(self, proxy: Proxy) -> None:
        self._note("lose the answer to a commit")
        proxy.cut_after(COMMIT)

    def _disturb(self, what: str, proxy: Proxy, do: Callable[[], None], leases: float) -> None:
        name = next(name for name, one in self.stage.proxies.items() if one is proxy)
        if name in self._heals_at:
            return
        seconds = self.stage.scenario.lease_seconds * leases * self.dice.uniform(0.5, 1.0)
        do()
        self._heals_at[name] = time.monotonic() + seconds
        self._note(what, seconds=seconds)

    def _heal_what_is_over(self, now: float) -> None:
        for name, at in list(self._heals_at.items()):
            if now >= at:
                self.stage.proxies[name].heal()
                del self._heals_at[name]

    def _note(self, what: str, *, seconds: float = 0.0, pid: int = 0) -> None:
        at = time.monotonic()
        self.done.append(Fault(what=what, at=at, until=at + seconds, pid=pid))
