"""Receivers on loopback that record what really arrives: a mail server and a web server, for the demo and the tests.

They speak the protocols on real sockets, on a port that the system picks. What they should answer can be scripted,
failures and cut connections included; the last word about *delivered twice* or *never delivered* is theirs, not the
sender's.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as email_policy
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Final, Self

LOOPBACK: Final = "127.0.0.1"
IDLE_SECONDS: Final = 30
LONGEST_LINE: Final = 65_536
LARGEST_BODY: Final = 32 * 1024 * 1024


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
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class _Sink:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpReply:
    """What the mail server answers to one mail.

    With *hang_up* the connection is cut instead, the mail taken if *takes*.
    """

    code: int = 250
    text: str = "taken"
    takes: bool = True
    hang_up: bool = False

    @classmethod
    def refuse(cls, code: int = 451) -> SmtpReply:
        """Not taken; the sender is told."""
        return cls(code=code, text="refused", takes=False)

    @classmethod
    def take_and_hang_up(cls) -> SmtpReply:
        """Taken, but the sender never hears of it: it must send again, which only the Message-ID gives away."""
        return cls(hang_up=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail as it came in, envelope first."""

    sender: str
    recipients: tuple[str, ...]
    raw: bytes = field(repr=False)

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed."""
        return message_from_bytes(self.raw, policy=email_policy)

    @property
    def message_id(self) -> str:
        """Its Message-ID, brackets included; empty when it has none."""
        return str(self.message.get("Message-ID", "")).strip()


class SmtpSink(_Sink):
    """A mail server that takes everything and forwards nothing.

    >>> with SmtpSink() as sink, smtplib.SMTP(sink.host, sink.port) as smtp:
    ...     smtp.send_message(message)
    """

    def __init__(self) -> None:
        self._mails: list[Mail] = []
        self._replies: deque[SmtpReply] = deque()
        self._refused: dict[str, int] = {}
        super().__init__(_SmtpConversation)

    def reply(self, *replies: SmtpReply) -> None:
        """Answer the next mails with *replies*, in this order; after that, take everything again."""
        with self._lock:
            self._replies.extend(replies)

    def refuse_recipient(self, address: str, code: int = 550) -> None:
        """Answer every RCPT TO for *address* with *code*."""
        with self._lock:
            self._refused[address] = code

    @property
    def mails(self) -> list[Mail]:
        """All that were taken, in the order of their coming."""
        with self._lock:
            return list(self._mails)

    @property
    def message_ids(self) -> list[str]:
        """Their Message-IDs, repeats included."""
        return [mail.message_id for mail in self.mails]

    @property
    def repeats(self) -> dict[str, int]:
        """Message-IDs that came more than once, and how often."""
        return _repeats(self.message_ids)

    def refusal_of(self, address: str) -> int | None:
        """The code that RCPT TO *address* gets, None when it is welcome."""
        with self._lock:
            return self._refused.get(address)

    def receive(self, mail: Mail) -> SmtpReply:
        """Record *mail*, if the script takes it, and say what to answer."""
        with self._lock:
            reply = self._replies.popleft() if self._replies else SmtpReply()
            if reply.takes:
                self._mails.append(mail)
            return reply


class _SmtpConversation(StreamRequestHandler):
    """RFC 5321's minimum, with 8BITMIME and SMTPUTF8."""

    timeout = IDLE_SECONDS

    def setup(self) -> None:
        super().setup()
        self._sink: SmtpSink = _server_of(self).sink
        self._sender: str | None = None
        self._recipients: list[str] = []

    def handle(self) -> None:
        self._say(220, "sink ready")
        while line := self.rfile.readline(LONGEST_LINE):
            verb, _, argument = line.decode("utf-8", "replace").strip().partition(" ")
            if not self._obey(verb.upper(), argument):
                return

    def _obey(self, verb: str, argument: str) -> bool:
        """Carry out one command; False ends the conversation."""
        match verb:
            case "EHLO":
                self._forget()
                self.wfile.write(b"250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n")
            case "HELO" | "RSET" | "NOOP":
                if verb != "NOOP":
                    self._forget()
                self._say(250, "ok")
            case "MAIL":
                self._forget()
                self._sender = _path(argument)
                self._say(250, "ok")
            case "RCPT":
                self._add_recipient(_path(argument))
            case "DATA":
                return self._take_data()
            case "QUIT":
                self._say(221, "bye")
                return False
            case _:
                self._say(502, "not implemented")
        return True

    def _add_recipient(self, address: str) -> None:
        code = self._sink.refusal_of(address)
        if self._sender is None:
            self._say(503, "MAIL first")
        elif code is not None:
            self._say(code, f"{address} is not welcome")
        else:
            self._recipients.append(address)
            self._say(250, "ok")

    def _take_data(self) -> bool:
        if self._sender is None or not self._recipients:
            self._say(503, "MAIL and RCPT first")
            return True
        self._say(354, "end with a dot on a line of its own")
        lines: list[bytes] = []
        while (line := self.rfile.readline(LONGEST_LINE)) != b".\r\n":
            if not line:
                return False  # cut off in the middle: nothing was sent
            lines.append(line[1:] if line.startswith(b".") else line)
        reply = self._sink.receive(Mail(sender=self._sender, recipients=tuple(self._recipients), raw=b"".join(lines)))
        self._forget()
        if reply.hang_up:
            return False
        self._say(reply.code, reply.text)
        return True

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []

    def _say(self, code: int, text: str) -> None:
        self.wfile.write(f"{code} {text}\r\n".encode())


def _path(argument: str) -> str:
    """The address in ``FROM:<ada@example.org> SIZE=12``."""
    return argument.partition("<")[2].partition(">")[0]


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


class HttpSink(_Sink):
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
        return _repeats(self.idempotency_keys)

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
        sink: HttpSink = _server_of(self).sink
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


def _server_of(handler: StreamRequestHandler) -> _Server:
    server: BaseServer = handler.server
    assert isinstance(server, _Server)  # noqa: S101 - these handlers are made by no other
    return server


def _repeats(keys: Iterable[str]) -> dict[str, int]:
    return {key: count for key, count in Counter(keys).items() if count > 1}
