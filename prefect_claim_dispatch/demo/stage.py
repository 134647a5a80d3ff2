"""The demo's surroundings: a folder, a Prefect server of its own, the claim flows as processes.

All ended by their ids.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

STARTUP = 90.0
UI_PORT = 4200
LEASE = "6s"


class DemoError(Exception):
    """The demo's surroundings did not come up; not a claim that failed."""


@dataclass(kw_only=True)
class Stage:
    """Starts what the demo needs in *directory*; a context manager that ends every process it started."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    port: int = 0
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port(UI_PORT)
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(self.directory / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "CLAIM_DISPATCH_DATABASE_URL": self.database_url,
            "CLAIM_DISPATCH_TABLE": "action_logs",
            "CLAIM_DISPATCH_BACKOFF_SECONDS": "1",
            "CLAIM_DISPATCH_MAX_CONCURRENCY": "8",
            "DEMO_DIRECTORY": str(self.directory),
        }
        # A profile or an API of the user's own must not be touched by a demo.
        for name in (
            "PREFECT_API_KEY",
            "PREFECT_PROFILE",
            "PREFECT_API_AUTH_STRING",
            "CLAIM_DISPATCH_SCHEMA",
        ):
            self.environment.pop(name, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            end(process)

    @property
    def api_url(self) -> str:
        """Where the demo's Prefect server answers."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def database_url(self) -> str:
        """The demo's own SQLite file."""
        return f"sqlite:///{self.directory / 'claim-dispatch.db'}"

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start Prefect's own server and wait until it answers."""
        arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        server = self._start([sys.executable, "-m", "prefect", *arguments], "server.log")
        wait_until(lambda: self._answers(server), "the Prefect server to answer", STARTUP)
        return server

    def start_flow(self, name: str, *, stay: str) -> subprocess.Popen[bytes]:
        """Start one claim flow, as the command line would."""
        arguments = [
            "run",
            "--processors",
            "prefect_claim_dispatch.demo.processors",
            "--lease",
            LEASE,
            "--stay",
            stay,
        ]
        command = [sys.executable, "-m", "prefect_claim_dispatch.cli", *arguments, "--json"]
        return self._start(command, f"{name}.log")

    def running_flows(self) -> int:
        """How many runs of the claim flow are running, as the server sees it."""
        wanted = {
            "flows": {"name": {"any_": ["claim-dispatch"]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        request = urllib.request.Request(  # noqa: S310 - our own server, on loopback
            f"{self.api_url}/flow_runs/count", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return int(json.load(answer))

    def _start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        if server.poll() is not None:
            msg = f"the Prefect server ended with {server.returncode}; see {self.directory / 'server.log'}"
            raise DemoError(msg)
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:  # noqa: S310
                return answer.status == 200  # noqa: PLR2004
        except (urllib.error.URLError, OSError):
            return False


def free_port(wanted: int) -> int:
    """*wanted* if nobody has it, otherwise any free port on loopback."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    msg = "no free port on loopback"
    raise DemoError(msg)


def end(process: subprocess.Popen[bytes]) -> None:
    """End *process* politely, then for certain."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(is_so: Callable[[], bool], description: str, timeout: float, pause: float = 0.2) -> None:
    """Wait until *is_so*; says what it waited for when it gives up."""
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            msg = f"waited {timeout:.0f} s for {description}"
            raise DemoError(msg)
        time.sleep(pause)
