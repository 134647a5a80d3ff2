"""What both sinks have in common: a server on loopback, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from socketserver import BaseServer, StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Final, Self

LOOPBACK: Final = "127.0.0.1"
IDLE_SECONDS: Final = 30


class _Server(ThreadingTCPServer):
    """A thread per connection; closing ends the connections too, so that no thread and no socket is left behind."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, handler: type[StreamRequestHandler], sink: Any) -> None:
        super().__init__((LOOPBACK, 0), handler)
        self.sink = sink
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what these servers are for."""

    def end(self) -> None:
        self.shutdown()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)
        self.server_close()


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class Sink:
    """What both have in common: a server in a thread, from `with` or `start` to `close`."""

    def __init__(self, handler: type[StreamRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._server = _Server(handler, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            name=type(self).__name__,
            daemon=True,
        )

    @property
    def host(self) -> str:
        """The loopback address."""
        return LOOPBACK

    @property
    def port(self) -> int:
        """The port that the system picked."""
        return int(self._server.server_address[1])

    def start(self) -> Self:
        """Serve until `close`."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Hang up and give the port back; what was recorded stays."""
        self._server.end()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def server_of(handler: StreamRequestHandler) -> _Server:
    """The server that *handler* works for; its `sink` records."""
    server: BaseServer = handler.server
    assert isinstance(server, _Server)  # noqa: S101 - these handlers are made by no other
    return server


def repeats_of(keys: Iterable[str]) -> dict[str, int]:
    """The *keys* that came more than once, and how often."""
    return {key: count for key, count in Counter(keys).items() if count > 1}
