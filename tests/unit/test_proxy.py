"""The proxy of the fault tests: against a real echo and a real PostgreSQL, each control does what its name says."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.kit import postgres
from tests.kit.proxy import COMMIT, Proxy
from tests.kit.waiting import wait_until


class _Echo(socketserver.BaseRequestHandler):
    heard: bytearray

    def handle(self) -> None:
        while data := self.request.recv(1_000):
            self.heard += data
            self.request.sendall(data)


@pytest.fixture
def heard() -> bytearray:
    """What reached the echo."""
    return bytearray()


@pytest.fixture
def proxy(heard: bytearray) -> Iterator[Proxy]:
    """A proxy before an echo."""
    handler = type("Echo", (_Echo,), {"heard": heard})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with Proxy(("127.0.0.1", server.server_address[1])) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    """Connect to the echo by way of the proxy."""
    opened: list[socket.socket] = []

    def connected() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
        return opened[-1]

    yield connected
    for one in opened:
        one.close()


def echoed(client: socket.socket, data: bytes = b"ping") -> bytes:
    """Send and read as much."""
    client.sendall(data)
    answer = b""
    while len(answer) < len(data):
        answer += client.recv(1_000) or b"(end)" * len(data)
    return answer


def assert_reset(client: socket.socket) -> None:
    """Gone by RST, not by an orderly end."""
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def assert_refused(connect: Callable[[], socket.socket]) -> None:
    """A new connection is reset, in the middle of connecting or just after."""
    with pytest.raises(ConnectionResetError):
        connect().recv(1)


def assert_silent(client: socket.socket) -> None:
    """Neither data nor an end, for a while."""
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_proxy_passes_on_whatever_its_size(connect: Callable[[], socket.socket]) -> None:
    """Two clients, and more than one chunk."""
    one, other = connect(), connect()

    assert echoed(one) == b"ping"
    assert echoed(other, b"pong" * 50_000) == b"pong" * 50_000


def test_delayed_answer_comes_late(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    """Late, but the same."""
    client = connect()
    proxy.delay(0.3)
    began_at = time.monotonic()

    assert echoed(client) == b"ping"
    assert time.monotonic() - began_at >= 0.3

    proxy.heal()
    began_at = time.monotonic()
    assert echoed(client) == b"ping"
    assert time.monotonic() - began_at < 0.3


def test_cut_resets_what_is_open_and_what_comes(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    """Until it is healed."""
    client = connect()
    assert echoed(client) == b"ping"

    proxy.cut()

    assert_reset(client)
    assert_refused(connect)

    proxy.heal()
    assert echoed(connect()) == b"ping"


def test_blackhole_takes_all_and_answers_nothing(
    proxy: Proxy, connect: Callable[[], socket.socket], heard: bytearray
) -> None:
    """Old and new connections look alive; nothing arrives, and healing resets them, since data is missing."""
    old = connect()
    assert echoed(old) == b"ping"

    proxy.blackhole()
    new = connect()
    for client in (old, new):
        client.sendall(b"anybody?")
        assert_silent(client)

    assert heard == b"ping"
    proxy.heal()
    assert_reset(old)
    assert_reset(new)
    assert echoed(connect()) == b"ping"


def test_answer_is_lost_once_and_the_request_is_not(
    proxy: Proxy, connect: Callable[[], socket.socket], heard: bytearray
) -> None:
    """In two pieces too; the neighbour's connection and the next one live."""
    client, neighbour = connect(), connect()
    assert echoed(neighbour) == b"ping"
    assert echoed(client, b"secret") == b"secret", "what was answered before is not meant"
    heard.clear()
    proxy.cut_after(b"secret")

    assert echoed(client, b"harmless") == b"harmless"
    client.sendall(b"a sec")
    assert client.recv(100) == b"a sec"
    client.sendall(b"ret")

    assert_reset(client)
    assert heard == b"harmlessa secret"
    assert proxy.lost_answers == 1
    assert echoed(neighbour, b"secret") == b"secret"


def test_answer_is_lost_and_all_goes_dark(proxy: Proxy, connect: Callable[[], socket.socket]) -> None:
    """As when a switch dies."""
    client, neighbour = connect(), connect()
    assert echoed(neighbour) == b"ping"
    proxy.cut_after(b"last words", then="cut")

    client.sendall(b"last words")

    assert_reset(client)
    assert_reset(neighbour)
    assert_refused(connect)


def test_nobody_behind_the_proxy_is_a_reset() -> None:
    """As if it were not there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            Proxy(("127.0.0.1", unused.getsockname()[1])) as proxy,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
        ):
            client.recv(1)


@pytest.mark.parametrize("name", postgres.available())
def test_postgres_has_committed_what_it_was_not_heard_to_commit(
    private_postgres: Callable[..., postgres.Server], name: str
) -> None:
    """The fault that the others are told apart by: the client sees an error, and the row is there."""
    server = private_postgres(name, durable=False)
    with server.connect() as direct, Proxy.before(server) as proxy:
        direct.execute("CREATE TABLE noted (n integer)")
        engine = create_engine(proxy.url(server.url()))
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO noted VALUES (1)"))
            proxy.cut_after(COMMIT)
            with pytest.raises(OperationalError):
                connection.commit()

        wait_until(lambda: count(direct) == 1, description="the row is there", timeout=5)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO noted VALUES (2)"))
        assert (count(direct), proxy.lost_answers) == (2, 1)

        proxy.cut()
        engine.dispose()
        with pytest.raises(OperationalError):
            engine.connect()
        proxy.heal()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM noted")).scalar() == 2
        engine.dispose()


def count(direct: psycopg.Connection) -> int:
    """How many rows there are, asked beside the proxy."""
    row = direct.execute("SELECT count(*) FROM noted").fetchone()
    return row[0] if row else 0
