"""A web server that says 200 to everything, unless told otherwise for a path."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from prefect_claim_dispatch.demo.sinks.serving import IDLE_SECONDS, Sink, repeats_of, server_of

LARGEST_BODY: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """What the web server answers to one request; with *hang_up* it cuts the connection instead."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    hang_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came in, and the status it was answered with (None: hung up)."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int | None

    @property
    def idempotency_key(self) -> str | None:
        """The header by which a receiver recognises a repeat."""
        return self.headers.get("idempotency-key")

    @property
    def is_accepted(self) -> bool:
        """Whether the sender was told that all is well."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004


class HttpSink(Sink):
    """A web server that says 200 to everything, unless told otherwise for a path."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._replies: defaultdict[str, deque[HttpReply]] = defaultdict(deque)
        super().__init__(_HttpConversation)

    def url(self, path: str = "/") -> str:
        """The address of *path* here."""
        return f"http://{self.host}:{self.port}{path}"

    def reply(self, path: str, *replies: HttpReply) -> None:
        """Answer the next requests for *path* with *replies*, in this order; after that, 200 again."""
        with self._lock:
            self._replies[path].extend(replies)

    def fail(self, path: str, times: int, status: int = 503) -> None:
        """Answer the next *times* requests for *path* with *status*."""
        self.reply(path, *[HttpReply(status=status)] * times)

    @property
    def requests(self) -> list[Request]:
        """All that came, answered well or not, in the order of their coming."""
        with self._lock:
            return list(self._requests)

    @property
    def idempotency_keys(self) -> list[str]:
        """The keys of the requests that were answered well, repeats included."""
        return [request.idempotency_key for request in self.requests if request.is_accepted and request.idempotency_key]

    @property
    def repeats(self) -> dict[str, int]:
        """Idempotency keys that were answered well more than once, and how often."""
        return repeats_of(self.idempotency_keys)

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> HttpReply:
        """Record a request and say what to answer."""
        with self._lock:
            script = self._replies[path]
            reply = script.popleft() if script else HttpReply()
            status = None if reply.hang_up else reply.status
            self._requests.append(Request(method=method, path=path, headers=headers, body=body, status=status))
            return reply


class _HttpConversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def _serve(self) -> None:
        sink: HttpSink = server_of(self).sink
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > LARGEST_BODY:
            self.send_error(411)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = sink.receive(self.command, self.path, headers, body)
        if reply.hang_up:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: what came in is in `HttpSink.requests`."""
