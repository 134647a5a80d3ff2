"""A real Prefect server, and real workers against it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from tests.kit import postgres
from tests.kit.processes import Child, Interrupt, Processes, children, free_port
from tests.kit.waiting import wait_until

START_SECONDS = 120  # a cold start makes the server's database first
SERVICE_UNAVAILABLE = 503
DATABASE = "prefect"
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_CLI_COLORS": "false",
    "NO_COLOR": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectServer:
    """A Prefect server: its API's URL (``.../api``), and the home directory that it keeps its SQLite file in.

    *sockets*: the folder of the socket of the PostgreSQL that it has its database in instead, if it has.
    """

    api_url: str
    home: str
    sockets: str = ""

    @property
    def ui_url(self) -> str:
        """Where a browser goes."""
        return self.api_url.removesuffix("/api")

    @property
    def env(self) -> dict[str, str]:
        """What a client process needs in its environment; `PREFECT_HOME` is not among it: each client has its own."""
        return {"PREFECT_API_URL": self.api_url, **QUIET}

    @property
    def is_healthy(self) -> bool:
        """The server answers."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def stored(self) -> bytes:
        """All that its database holds, as bytes."""
        if not self.sockets:
            return b"".join(file.read_bytes() for file in Path(self.home).rglob("*.db*"))
        with psycopg.connect(f"host={self.sockets} user=postgres dbname={DATABASE}") as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            return b"".join(_rows(connection, name) for (name,) in names)

    def get(self, path: str) -> Any:
        """The JSON that ``GET /api/path`` answers."""
        return self._ask(path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that ``POST /api/path`` answers."""
        return self._ask(path, body or {})

    def delete(self, path: str) -> None:
        """``DELETE /api/path``."""
        self._ask(path, None, "DELETE")

    def _ask(self, path: str, body: Mapping[str, Any] | None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api_url}/{path.lstrip('/')}", data, {"Content-Type": "application/json"}, method=method
        )
        (content,) = wait_until(lambda: _content(request), description=f"{path} is served", timeout=30)
        return json.loads(content) if content else None


def _rows(connection: psycopg.Connection, table: str) -> bytes:
    with connection.cursor().copy(SQL("COPY {} TO STDOUT (FORMAT binary)").format(Identifier(table))) as copy:
        return table.encode() + b"".join(map(bytes, copy))


def _content(request: urllib.request.Request) -> tuple[bytes] | None:
    """What is answered; None where the server asks to come again: its SQLite file was locked, and nothing is done."""
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return (answer.read(),)
    except urllib.error.HTTPError as error:
        if error.code != SERVICE_UNAVAILABLE:
            raise
        error.close()
        return None


def start(
    processes: Processes,
    home: Path,
    *,
    port: int | None = None,
    env: Mapping[str, str | None] | None = None,
    database: postgres.Server | None = None,
) -> tuple[PrefectServer, Child]:
    """Start a server that keeps its data in *home*, and wait until it is healthy.

    The child can be paused or killed; the same *home* and *port* bring the server back as it was. *env* is laid over
    its environment. *database*: where it makes its database (``prefect``), which is no SQLite file then: many who
    write at once find a file locked, and are told 503.
    """
    port = port or free_port()
    sockets = database.sockets if database else ""
    server = PrefectServer(api_url=f"http://127.0.0.1:{port}/api", home=str(home), sockets=sockets)
    home.mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | None] = {name: None for name in os.environ if name.startswith("PREFECT_")}
    settings |= {
        **QUIET,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": server.api_url,
        "PREFECT_SERVER_UI_API_URL": server.api_url,  # the UI stays empty on any other port than 4200 without it
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        **(env or {}),
    }
    if database:
        with database.connect() as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        url = f"postgresql+asyncpg://postgres@/{DATABASE}?host={sockets}"
        settings["PREFECT_API_DATABASE_CONNECTION_URL"] = url
    child = processes.python(
        "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), env=settings
    )

    def is_up() -> bool:
        assert child.is_running, f"the Prefect server ended:\n{child.output}\n{child.errors}"
        return server.is_healthy

    wait_until(is_up, description=f"the Prefect server on port {port} is healthy", timeout=START_SECONDS)
    return server, child


@contextmanager
def running(folder: Path, *, env: Mapping[str, str | None] | None = None) -> Generator[PrefectServer]:
    """A server of one's own, in *folder*, gone at the end."""
    with children(folder / "output") as processes:
        yield start(processes, folder / "home", env=env)[0]


def create_process_pool(processes: Processes, server: PrefectServer, name: str) -> None:
    """Create a work pool of type ``process``, by Prefect's own command."""
    processes.python(
        "-m", "prefect", "work-pool", "create", name, "--type", "process", "--overwrite", env=server.env
    ).expect_success(60)


def start_worker(
    processes: Processes,
    server: PrefectServer,
    pool: str,
    *,
    interrupt: Interrupt,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start ``prefect worker`` for *pool*, and wait until it says that it has started and the server that it is online.

    *interrupt* decides what SIGTERM does to it. ``default``: the worker ends at once and its flow runs are killed;
    ``ignored``: it takes no new runs and waits for those it has.
    """
    before = len(_online(server, pool))
    settings: dict[str, str | None] = {
        **server.env,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        **(env or {}),
    }
    child = processes.python(
        *("-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"),
        *("--name", f"{pool}-{len(processes.children)}-{os.getpid()}", "--install-policy", "never"),
        env=settings,
        cwd=cwd,
        interrupt=interrupt,
    )

    def is_online() -> bool:
        assert child.is_running, f"the worker ended: {child.told}"
        # The server knows before the worker is ready: a signal in between met it half made.
        return "started!" in child.output and len(_online(server, pool)) > before

    wait_until(is_online, description=f"a worker of pool {pool} is online", timeout=60, explain=lambda: child.told)
    return child


def _online(server: PrefectServer, pool: str) -> list[Any]:
    workers = server.post(f"work_pools/{pool}/workers/filter")
    return [worker for worker in workers if worker["status"] == "ONLINE"]
