"""What really happened, written by whoever did it, apart from the action table.

A *ledger* holds claims, executions and what the table answered; a *publish log* holds what publishers asked for and
were told. Both are folders with one file for each process that writes, JSON lines that are only ever appended, so that
a SIGKILL in the middle of a line costs that line and no other. :mod:`.auditor` holds them against the table.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from prefect_claim_dispatch.drafts import Receipt

VARIABLE = "TEST_KIT_LEDGER"  # names the ledger's folder to processors in other processes

What = Literal["claim", "begin", "end", "accepted", "asked", "published", "refused"]


class Claim(Protocol):
    """What a line says about a claim; an `Action` or a `RawAction`."""

    @property
    def id(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def claim_count(self) -> int: ...
    @property
    def fail_count(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. `at` is monotonic and comparable between processes of one machine; `wall` is the process's own clock.

    `sent_at` is the monotonic instant before the statement was sent of which this line tells the answer; `outcome` is
    what an execution came to, the status that the table took, or a receipt's outcome; `due` is an instant in ISO 8601.
    """

    what: What
    id: int = 0
    key: str | None = None
    type: str = ""
    attempt: int = 0
    claim_count: int = 0
    outcome: str = ""
    due: str | None = None
    token: str = ""
    sent_at: float | None = None
    pid: int = field(default_factory=os.getpid)
    at: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)

    @property
    def fence(self) -> tuple[int, int]:
        """The claim that the line is about."""
        return self.id, self.claim_count


@dataclass(frozen=True, slots=True)
class Lines:
    """All that was written, in order of `at`, and how many last lines were torn by a kill."""

    entries: tuple[Entry, ...] = ()
    torn: int = 0


class Ledger:
    """Appends to a file of its own in *folder*, and reads what everybody has appended there.

    *durable*: wait for the disk after each line, where the machine itself may be lost.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._durable = durable
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None  # the pid that opened it, and the descriptor

    @classmethod
    def of_environment(cls) -> Ledger:
        """The ledger that the parent process has named by `VARIABLE`."""
        return cls(Path(os.environ[VARIABLE]))

    def write(self, entry: Entry) -> None:
        """Append one line, by one system call.

        Raises:
            ValueError: longer than what the system appends in one piece.
            OSError: it was not written whole; the file ends there, and the next line begins another.
        """
        known = {name: value for name, value in asdict(entry).items() if value not in (None, "", 0)}
        line = json.dumps(known).encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            msg = f"a line of the ledger must be at most {select.PIPE_BUF} bytes, got {len(line)}; shorten the key"
            raise ValueError(msg)
        with self._lock:
            descriptor = self._opened()
            written = os.write(descriptor, line)
            if self._durable:
                os.fsync(descriptor)
            if written < len(line):
                self._close()
                msg = f"only {written} of {len(line)} bytes of a ledger's line were written"
                raise OSError(msg)

    def claimed(self, claims: Iterable[Claim], *, sent_at: float | None = None) -> None:
        """The table gave these claims; *sent_at*: when it was asked, monotonic."""
        for claim in claims:
            self.write(_about(claim, "claim", sent_at=sent_at))

    def begin(self, claim: Claim) -> None:
        """An execution begins."""
        self.write(_about(claim, "begin"))

    def end(self, claim: Claim, outcome: str = "processed") -> None:
        """An execution came to *outcome*: processed, failed, snoozed, cancelled, released."""
        self.write(_about(claim, "end", outcome=outcome))

    @contextmanager
    def attempt(self, claim: Claim) -> Generator[None]:
        """An execution: begins here, ends processed, or failed with whatever is raised."""
        self.begin(claim)
        try:
            yield
        except BaseException:
            self.end(claim, "failed")
            raise
        self.end(claim)

    def accepted(self, claim: Claim, status: str = "", *, sent_at: float) -> None:
        """The table took a write of this claim, sent at *sent_at*; *status*: the verdict's, if it was one."""
        self.write(_about(claim, "accepted", outcome=status, sent_at=sent_at))

    def read(self) -> Lines:
        """What is there now.

        Raises:
            ValueError: a line that is not the last of its file can't be read; nothing that dies does that.
        """
        entries: list[Entry] = []
        torn = 0
        for file in sorted(self.folder.glob("*.jsonl")):
            *whole, last = file.read_bytes().split(b"\n")
            torn += bool(last)
            entries += [Entry(**json.loads(line)) for line in whole]
        return Lines(tuple(sorted(entries, key=lambda entry: entry.at)), torn)

    def _opened(self) -> int:
        # After a fork the descriptor is the parent's too, and its last line is not ours to tear.
        if self._file is None or self._file[0] != os.getpid():
            file = self.folder / f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
            self._file = os.getpid(), os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return self._file[1]

    def _close(self) -> None:
        if self._file is not None and self._file[0] == os.getpid():
            os.close(self._file[1])
        self._file = None

    def close(self) -> None:
        """Close this process's file; a later line begins another."""
        with self._lock:
            self._close()

    def __del__(self) -> None:
        """Close it for whoever did not: a thousand tests leave as many ledgers."""
        self._close()


class PublishLog:
    """What publishers asked for and what they were told: asked, then published, refused, or nothing at all."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger(folder)

    def asked(self, type_: str, key: str | None = None) -> str:
        """Note a publish about to be sent; the answer is the token that its acknowledgement is noted by."""
        token = os.urandom(8).hex()
        self._ledger.write(Entry(what="asked", type=type_, key=key, token=token))
        return token

    def published(
        self, token: str, receipt: Receipt, type_: str, key: str | None = None, due: datetime | None = None
    ) -> None:
        """The publisher was given *receipt*, and its transaction was committed."""
        self._ledger.write(
            Entry(
                what="published",
                id=receipt.id or 0,
                type=type_,
                key=key,
                token=token,
                outcome=receipt.outcome,
                due=due.isoformat() if due else None,
            )
        )

    def refused(self, token: str) -> None:
        """The publisher knows that nothing was written: it rolled back, or the database said no."""
        self._ledger.write(Entry(what="refused", token=token))

    def read(self) -> Lines:
        """What is there now."""
        return self._ledger.read()

    def close(self) -> None:
        """Close this process's file."""
        self._ledger.close()


def _about(claim: Claim, what: What, **more: Any) -> Entry:
    end_at = getattr(claim, "end_at", None)
    return Entry(
        what=what,
        id=claim.id,
        key=getattr(claim, "key", None),
        type=claim.type,
        attempt=claim.fail_count + 1,
        claim_count=claim.claim_count,
        due=end_at.isoformat() if end_at else None,
        **more,
    )
