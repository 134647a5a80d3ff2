"""A Prefect server that is watched: its processor time, the requests and events it got, and when it is quiet again.

With ``CLAIM_DISPATCH_BENCH_PREFECT`` set (JSON: *api_url*, *home*, and for what is to be metered *pid* and *output*) no
server is started: several benchmarks then share that one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kit
from sqlalchemy import Engine, func, select

from prefect_claim_dispatch.schema import actions_table

if TYPE_CHECKING:  # imports Prefect, which must find its API in the environment
    from prefect_claim_dispatch import DispatchReport

SHARED = "CLAIM_DISPATCH_BENCH_PREFECT"
REQUEST = re.compile(rb'"(?:GET|POST|PUT|PATCH|DELETE) /api/')
LOGS = re.compile(rb'"POST /api/logs/ ')
"""What a client sends every two seconds while there is something to tell: it counts seconds, not work."""

QUIET_SECONDS = 2.0
QUIET_SHARE = 0.1
"""Of one core; an idle server takes 0.01 to 0.03 of it."""

STARVED_SHARE = 0.5
"""Of a second, waiting for a core: on a busy machine a server that has much to do looks idle without it."""

GIVE_UP_SECONDS = 900
FIGURES = ("wall", "inside", "client CPU", "server CPU", "requests", "requests but logs", "events")


class Watched:
    """A Prefect server; what can't be metered, for want of its *pid* and *output*, is 0."""

    def __init__(self, api_url: str, home: str, pid: int | None = None, output: str | None = None) -> None:
        sys.path.insert(0, str(kit.ROOT))
        from tests.kit.prefect_server import PrefectServer

        self.server = PrefectServer(api_url=api_url, home=home)
        self._pid = pid
        self._output = Path(output) if output else None

    @property
    def shared(self) -> str:
        """What to set ``CLAIM_DISPATCH_BENCH_PREFECT`` to."""
        output = str(self._output) if self._output else None
        return json.dumps(
            {"api_url": self.server.api_url, "home": self.server.home, "pid": self._pid, "output": output}
        )

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all threads since the server's start."""
        return self._scheduled()[0]

    @property
    def requests(self) -> int:
        """API requests so far, by its own access log; websockets are not among them."""
        return self._logged(REQUEST)

    @property
    def log_batches(self) -> int:
        """Those among the requests that bring logs."""
        return self._logged(LOGS)

    @property
    def events(self) -> int:
        """Events that it has stored."""
        body = {"filter": {"occurred": {"since": "2020-01-01T00:00:00Z"}}, "limit": 1}
        return int(self.server.post("events/filter", body)["total"])

    @property
    def task_runs(self) -> int:
        """Task runs that it shows."""
        return int(self.server.post("task_runs/count", {}))

    def pause(self) -> None:
        """SIGSTOP; nothing, where its pid is not known."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    def wait_until_quiet(self) -> float:
        """When it had nothing to do any more, for two seconds since, by `time.perf_counter`."""
        since = time.perf_counter()
        if self._pid is None:
            return since
        give_up_at, last = since + GIVE_UP_SECONDS, self._scheduled()
        while time.perf_counter() - since < QUIET_SECONDS:
            time.sleep(0.5)
            now, at = self._scheduled(), time.perf_counter()
            if now[0] - last[0] > QUIET_SHARE / 2 or now[1] - last[1] > STARVED_SHARE / 2:
                since = at
            if at > give_up_at:
                raise SystemExit(f"the Prefect server was not quiet after {GIVE_UP_SECONDS} s")
            last = now
        return since

    def _send(self, signum: signal.Signals) -> None:
        if self._pid is not None:
            os.kill(self._pid, signum)

    def _logged(self, line: re.Pattern[bytes]) -> int:
        return len(line.findall(self._output.read_bytes())) if self._output else 0

    def _scheduled(self) -> tuple[float, float]:
        """Seconds on a core, threads that have ended included, and seconds that its living threads waited for one."""
        if self._pid is None:
            return 0.0, 0.0
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2].split()
        on_core = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        waiting = 0
        for thread in Path(f"/proc/{self._pid}/task").iterdir():
            with suppress(OSError):  # the thread has ended
                waiting += int((thread / "schedstat").read_text().split()[1])
        return on_core, waiting / 1e9


@contextmanager
def prefect() -> Generator[Watched]:
    """A server of one's own (or the shared one), and its API in this process's environment.

    To be entered before Prefect is imported, which reads that.
    """
    folder = Path(tempfile.mkdtemp(prefix="pcd-bench-"))
    try:
        if shared := os.environ.get(SHARED):
            yield _in_environment(Watched(**json.loads(shared)), folder)
            return
        sys.path.insert(0, str(kit.ROOT))
        from tests.kit import prefect_server
        from tests.kit.processes import children

        with children(folder / "output") as processes:
            # For its access log. By each request it costs the server some hundredths of a millisecond.
            env = {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"}
            server, child = prefect_server.start(processes, folder / "home", env=env)
            yield _in_environment(Watched(server.api_url, server.home, child.pid, str(child.stdout)), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_environment(watched: Watched, folder: Path) -> Watched:
    # As in production the runs' logs go to the API; only the terminal is spared them.
    os.environ |= watched.server.env | {
        "PREFECT_HOME": str(folder / "client"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    return watched


@contextmanager
def stage() -> Generator[tuple[str, Watched]]:
    """A PostgreSQL of the benchmark's own, which claim flows in this process find, and a watched Prefect server."""
    with kit.postgresql() as dsn, prefect() as server:
        os.environ["CLAIM_DISPATCH_DATABASE_URL"] = dsn
        yield dsn, server


def metered(server: Watched, rows: int, run: Callable[[], float]) -> dict[str, float]:
    """What *run*, which tells its own seconds without Prefect's start and end of a flow, costs for each of *rows*.

    Milliseconds, of the server until it is quiet again; requests and events.
    """
    server.wait_until_quiet()
    before = server.cpu_seconds, server.requests, server.log_batches, server.events
    cpu, began = time.process_time(), time.perf_counter()
    inside = run()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    server.wait_until_quiet()
    requests, log_batches = server.requests - before[1], server.log_batches - before[2]
    return {
        "wall": wall / rows * 1_000,
        "inside": inside / rows * 1_000,
        "client CPU": cpu / rows * 1_000,
        "server CPU": (server.cpu_seconds - before[0]) / rows * 1_000,
        "requests": requests / rows,
        "requests but logs": (requests - log_batches) / rows,
        "events": (server.events - before[3]) / rows,
    }


def medians(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {figure: statistics.median(one[figure] for one in measured) for figure in FIGURES}


def registered(function: Callable[..., Any], **options: Any) -> None:
    """Let *function* process what the benchmark publishes, as type ``noop``, and nothing else."""
    from prefect_claim_dispatch.processors import processor, registry

    registry._exact.clear()
    processor("noop", **options)(function)


def drained(engine: Engine, rows: int, **options: Any) -> tuple[float, DispatchReport]:
    """Run one claim flow over the *rows* due rows of the table; seconds from first claim to last settlement.

    By the database's clock, so that Prefect's start and end of a flow run, about a second, are not in it.
    """
    from prefect_claim_dispatch import claim_dispatch, heap

    with heap.frozen():
        report = claim_dispatch(processors=[], **options)
    table = actions_table()
    with engine.connect() as connection:
        first, last, marked = connection.execute(
            select(func.min(table.c.claimed_at), func.max(table.c.settled_at), func.count(table.c.run_id))
        ).one()
    if (report.processed, marked) != (rows, rows):
        raise SystemExit(f"processed {report.processed} of {rows}, {marked} with a run: {report.summary()}")
    return (last - first).total_seconds(), report
