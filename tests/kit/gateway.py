"""A gateway before a Prefect server, which passes everything on but what it is told to refuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.kit.prefect_server import PrefectServer

HOP_BY_HOP = frozenset({"connection", "content-encoding", "content-length", "host", "transfer-encoding"})


@dataclass(slots=True)
class Gateway:
    """*refusal*: the status that a request, ``POST /flow_runs/``, is refused with; None passes it on."""

    api_url: str = ""
    refusal: Callable[[str], int | None] = lambda _: None
    requests: list[str] = field(default_factory=list[str])


@contextmanager
def before(server: PrefectServer) -> Generator[Gateway]:
    """A gateway before *server*, on a port of its own."""
    gateway = Gateway()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = self.path.removeprefix("/api")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {path}"
            gateway.requests.append(asked)
            refused = gateway.refusal(asked)
            if refused is not None:
                self.reply(refused, {}, b'{"exception_message": "refused by the gateway"}')
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            passed_on = client.request(self.command, f"{server.api_url}{path}", content=body, headers=headers)
            self.reply(passed_on.status_code, passed_on.headers, passed_on.content)

        def reply(self, status: int, headers: Any, content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: Any) -> None:
            """Nothing: what was asked is in `requests`."""

    for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    with httpx.Client(timeout=60) as client, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        gateway.api_url = f"http://127.0.0.1:{listening.server_port}/api"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield gateway
        finally:
            listening.shutdown()
            thread.join(10)
