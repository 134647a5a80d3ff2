"""A loopback proxy that can be slow, silent, cut, or lose just the one answer that tells a client it was done.

It stands before a PostgreSQL (its Unix socket) or a Prefect API (a port). Whoever connects through it meets real
resets and real silence; whoever connects beside it is not touched.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import make_url

from tests.kit.postgres import Server

COMMIT = b"COMMIT\x00"
"""What psycopg's commit has in it, and no statement."""

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends RST
_CONTROL_SECONDS = 10
Mode = Literal["pass", "cut", "blackhole"]


class Proxy:
    """Forwards connections on `port` of 127.0.0.1 to *target*: a host and port, or the path of a Unix socket.

    It passes everything on until it is told otherwise; each control has taken effect when it returns.
    """

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self.port = 0
        self.lost_answers = 0
        self._target = target
        self._mode: Mode = "pass"
        self._delay = 0.0
        self._pattern: bytes | None = None
        self._mode_after: Mode = "pass"
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{target}", daemon=True)

    @classmethod
    def before(cls, server: Server) -> Self:
        """A proxy before a PostgreSQL of ours."""
        return cls(Path(server.sockets) / ".s.PGSQL.5432")

    def url(self, url: str) -> str:
        """*url* of the database behind, by way of this proxy."""
        parsed = make_url(url).set(host="127.0.0.1", port=self.port, query={"sslmode": "disable"})
        return parsed.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._listener = listening.result(_CONTROL_SECONDS)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_CONTROL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONTROL_SECONDS)
        self._loop.close()

    def heal(self) -> None:
        """Pass everything on from now, at once. Connections that were swallowed are reset: they miss what was sent."""
        self._control(self._heal)

    def delay(self, seconds: float) -> None:
        """Let each answer come *seconds* later."""
        self._control(lambda: setattr(self, "_delay", seconds))

    def cut(self) -> None:
        """Reset all connections now, and each new one as soon as it is made."""
        self._control(self._cut)

    def blackhole(self) -> None:
        """Take connections and what is sent, pass nothing on and answer nothing, neither data nor an end."""
        self._control(self._swallow)

    def cut_after(self, pattern: bytes, *, then: Mode = "pass") -> None:
        """Lose the answer to the next thing sent that has *pattern* in it: the server does it, the client gets a reset.

        The connection is cut when the server has answered, so what was asked for is done. *then* is how the proxy goes
        on, with all connections.
        """

        def arm() -> None:
            self._pattern, self._mode_after = pattern, then

        self._control(arm)

    def _control(self, do: Callable[[], None]) -> None:
        async def done() -> None:
            do()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(_CONTROL_SECONDS)

    def _heal(self) -> None:
        self._mode, self._delay, self._pattern = "pass", 0.0, None
        for link in [link for link in self._links if link.is_swallowed]:
            link.reset()

    def _cut(self) -> None:
        self._mode = "cut"
        for link in list(self._links):
            link.reset()

    def _swallow(self) -> None:
        self._mode = "blackhole"
        for link in self._links:
            link.is_swallowed = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            if self._mode == "cut":
                link.reset()
            elif self._mode == "blackhole":
                link.is_swallowed = True
                await link.swallow()
            else:
                await link.forward(self._target)
        except asyncio.CancelledError:
            link.reset()  # at the end of the proxy; nobody waits for this task, and asyncio would complain
        finally:
            self._links.discard(link)

    async def _end(self) -> None:
        self._listener.close()
        for link in list(self._links):
            link.reset()
        ending = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not ending]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def has_armed(self, before: bytes, sent: bytes) -> bool:
        """Whether the answer to what is being *sent*, after *before*, is to be lost; true once for each `cut_after`."""
        # Not in `before` alone: a COMMIT that was answered before the control was given is not the next one.
        if self._pattern is None or self._pattern not in before[max(0, len(before) - len(self._pattern) + 1) :] + sent:
            return False
        self._pattern = None
        return True

    def lost(self) -> None:
        """An answer was lost: go on as `cut_after` was told."""
        self.lost_answers += 1
        {"pass": lambda: None, "cut": self._cut, "blackhole": self._swallow}[self._mode_after]()

    async def wait(self) -> None:
        """Wait as long as an answer is to be late."""
        if self._delay:
            await asyncio.sleep(self._delay)


class _Link:
    """One client's connection and, while it is passed on, the one to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_swallowed = False
        self._loses_answer = False
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        """End both sides, the client's by RST."""
        with suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()
        if self._server is not None:
            self._server.transport.abort()

    async def swallow(self) -> None:
        """Read until the client gives up."""
        with suppress(OSError):
            while await self._reader.read(_CHUNK):
                pass
        self.reset()

    async def forward(self, target: tuple[str, int] | Path) -> None:
        """Pass on in both directions until one side ends."""
        try:
            answers, self._server = await (
                asyncio.open_unix_connection(target) if isinstance(target, Path) else asyncio.open_connection(*target)
            )
        except OSError:
            self.reset()
            return
        pumps = [asyncio.ensure_future(self._send(self._server)), asyncio.ensure_future(self._answer(answers))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._server.close()
            self._writer.close()

    async def _send(self, server: asyncio.StreamWriter) -> None:
        tail = b""
        while chunk := await self._reader.read(_CHUNK):
            if self.is_swallowed:
                continue
            # Before it is passed on: the answer may come sooner than we are back here.
            self._loses_answer = self._loses_answer or self._proxy.has_armed(tail, chunk)
            tail = (tail + chunk)[-_CHUNK:]
            server.write(chunk)
            await server.drain()

    async def _answer(self, answers: asyncio.StreamReader) -> None:
        while (chunk := await answers.read(_CHUNK)) or self.is_swallowed:
            if self._loses_answer:
                self.reset()
                self._proxy.lost()
                return
            await self._proxy.wait()
            if self.is_swallowed:
                await asyncio.Event().wait()  # until reset: an end, too, would be an answer
            self._writer.write(chunk)
            await self._writer.drain()
