"""The stage of a soak: a database of its own, perhaps behind proxies, and the processes that live on it."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, make_url

from prefect_claim_dispatch import engines, migrations
from prefect_claim_dispatch.settings import PREFIX
from tests.kit import postgres
from tests.kit.ledger import VARIABLE
from tests.kit.processes import Child, Processes, children
from tests.kit.proxy import Proxy
from tests.soak.scenario import STACKS, Part, Scenario

COMMANDS = {
    "loop": ("tests.soak.claimants", "loop"),
    "flow": ("tests.soak.claimants", "flow"),
    "publisher": ("tests.soak.publishers",),
    "operator": ("tests.soak.operating",),
}
CLAIMING = ("loop", "flow")
FLOW_CONCURRENCY = 4  # a Prefect server bears about 40 runs a second, and has one processor with all the others
ONE_WRITE_SECONDS = 0.5  # many times what the longest transaction of a process that runs takes


@dataclass(slots=True, kw_only=True)
class Member:
    """One of the processes, which is started anew whenever it has ended; *lives* counts them."""

    name: str
    kind: str
    child: Child
    lives: int = 1
    resumes_at: float | None = None
    is_told_to_end: bool = False

    @property
    def can_be_broken(self) -> bool:
        """It runs, and nothing is being done to it."""
        return self.child.is_running and self.resumes_at is None and not self.is_told_to_end


@dataclass(kw_only=True)
class Stage:
    """Everything that is broken and looked at: *url* leads straight to the database, *urls* as each kind goes."""

    scenario: Scenario
    folder: Path
    processes: Processes
    url: str
    urls: Mapping[str, str]
    api: Mapping[str, str]
    server: postgres.Server | None = None
    proxies: Mapping[str, Proxy] = field(default_factory=dict[str, Proxy])
    members: list[Member] = field(default_factory=list[Member])
    ended_by_themselves: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    @property
    def part(self) -> Part:
        """The folders that everybody writes to."""
        return Part(folder=self.folder, seed=str(self.scenario.seed))

    @property
    def database(self) -> str:
        """The database's name on its server."""
        return str(make_url(self.url).database)

    def engine(self) -> Engine:
        """An engine straight to the database."""
        return engines.create(self.url)

    def is_writable(self) -> bool:
        """Whether no stopped process keeps everybody from writing; an SQLite file has one writer at a time."""
        if self.server is not None:
            return True
        connection = sqlite3.connect(self.database, timeout=ONE_WRITE_SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    def start_all(self) -> None:
        """Start everybody."""
        counts = {"loop": self.scenario.claimants, "flow": self.scenario.flows, "operator": 1}
        for kind, number in {**counts, "publisher": self.scenario.publishers}.items():
            for position in range(number):
                name = f"{kind}-{position}"
                self.members.append(Member(name=name, kind=kind, child=self._start(name, kind, 1)))

    def of_kind(self, *kinds: str) -> list[Member]:
        """The members that nothing is being done to."""
        return [member for member in self.members if member.kind in kinds and member.can_be_broken]

    def has_claimed(self, member: Member) -> bool:
        """Whether it has claimed something since it was started."""
        return any(self.part.ledger.glob(f"{member.child.pid}-*.jsonl"))

    def restart_dead(self) -> None:
        """Start whoever has ended anew; resume who was stopped for long enough."""
        for member in self.members:
            if member.resumes_at is not None and time.monotonic() >= member.resumes_at:
                member.child.resume()
                member.resumes_at = None
            if not member.child.is_running:
                if not member.is_told_to_end:
                    self.ended_by_themselves.append((member.name, member.child.wait()))
                self.start_again(member)

    def start_again(self, member: Member) -> None:
        """A new life for one that has ended."""
        member.lives += 1
        member.child = self._start(member.name, member.kind, member.lives)
        member.resumes_at, member.is_told_to_end = None, False

    def end(self, *kinds: str) -> None:
        """Tell those to end, and wait until they have."""
        chosen = [member for member in self.members if member.kind in kinds and member.child.is_running]
        for member in chosen:
            if member.resumes_at is not None:
                member.child.resume()
            member.child.send(signal.SIGTERM)
        for member in chosen:
            try:
                member.child.wait(60)
            except AssertionError:
                member.child.send(STACKS)
                time.sleep(1)
                raise AssertionError(member.child.told) from None
        self.members = [member for member in self.members if member.kind not in kinds]

    def _start(self, name: str, kind: str, life: int) -> Child:
        scenario = self.scenario
        part = Part(
            folder=self.folder,
            seed=f"{scenario.seed} {name} {life}",
            per_second=scenario.per_second / scenario.publishers,
            concurrency=scenario.concurrency,
            lease_seconds=scenario.lease_seconds,
        )
        environment = {
            **part.environment,
            **(self.api if kind == "flow" else {}),
            VARIABLE: str(part.ledger),
            "PREFECT_HOME": str(self.folder / name),
            f"{PREFIX}DATABASE_URL": self.urls[kind],
            f"{PREFIX}LEASE_SECONDS": str(scenario.lease_seconds),
            f"{PREFIX}BACKOFF_SECONDS": "0.1",
            f"{PREFIX}BACKOFF_MAX_SECONDS": "1",
            f"{PREFIX}MAX_CONCURRENCY": str(FLOW_CONCURRENCY),
        }
        return self.processes.python("-m", *COMMANDS[kind], env=environment)


@contextmanager
def prepared(scenario: Scenario, folder: Path, api: Mapping[str, str]) -> Generator[Stage]:
    """A stage in *folder*, a short path where nothing is yet; *api*: a Prefect client's environment. All gone after."""
    with ExitStack() as stack:
        if scenario.database == "sqlite":
            folder.mkdir()
            url = f"sqlite:///{folder / 'soak.db'}"
            server, proxies, urls = None, {}, dict.fromkeys(COMMANDS, url)
        else:
            stack.callback(postgres.discard, folder)
            # Waits for the disk: without, an immediate stop may lose what was acknowledged, and rightly so.
            server = postgres.start(next(iter(postgres.available())), folder, durable=True)
            with server.connect() as connection:
                connection.execute("CREATE DATABASE soak")
            url = server.url("soak")
            proxies = {name: stack.enter_context(Proxy.before(server)) for name in ("claiming", "publishing")}
            through = {"loop": "claiming", "flow": "claiming", "publisher": "publishing"}
            urls = {"operator": url, **{kind: proxies[name].url(url) for kind, name in through.items()}}
        migrations.upgrade(url)
        processes = stack.enter_context(children(folder / "output"))
        yield Stage(
            scenario=scenario,
            folder=folder,
            processes=processes,
            url=url,
            urls=urls,
            api=api,
            server=server,
            proxies=proxies,
        )
