"""A real pgbouncer in transaction mode before a PostgreSQL of ours.

Each transaction may run on another server connection, so whatever a session was told before is gone or somebody
else's: what cannot stand that does not pass through here.
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tests.kit.postgres import Server
from tests.kit.processes import Child, Processes, free_port
from tests.kit.waiting import wait_until

VARIABLE = "CLAIM_DISPATCH_TEST_PGBOUNCER"  # set to 1, the tests of every database go through here
PREFIX = "pgbouncer:"  # before the name of a PostgreSQL, in a request to the run's keeper


def program() -> str | None:
    """The path of pgbouncer; None where it is not installed. Debian puts it where an ordinary user does not look."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def start(processes: Processes, server: Server, folder: Path) -> int:
    """Start pgbouncer before *server*, with what it needs in *folder*; returns its port on the loopback."""
    found = program()
    assert found is not None, "pgbouncer is not installed"
    port = free_port()
    folder.mkdir(mode=0o755, exist_ok=True)
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(_configuration(server, port))
    # It refuses to run as root, and must reach the socket.
    as_user = ["--user", pwd.getpwuid(Path(server.data).stat().st_uid).pw_name] if os.geteuid() == 0 else []
    child = processes.start([found, *as_user, str(configuration)], cwd=folder)
    wait_until(lambda: _answers(child, port), description=f"pgbouncer on port {port} answers", timeout=20)
    return port


def url_through(port: int, url: str) -> str:
    """*url* of a database, by way of the pgbouncer on *port*."""
    return make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)


def _configuration(server: Server, port: int) -> str:
    # Round robin over a few connections to the server: clients do meet each other's sessions.
    return "\n".join(
        [
            "[databases]",
            f"* = host={server.sockets} port=5432 user=postgres",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            "default_pool_size = 12",
            "max_client_conn = 1000",
            "server_round_robin = 1",
            "query_wait_timeout = 60",
            "",
        ]
    )


def _answers(child: Child, port: int) -> bool:
    assert child.is_running, f"pgbouncer ended:\n{child.output}\n{child.errors}"
    try:
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres", prepare_threshold=None).close()
    except psycopg.OperationalError:
        return False
    return True
