"""A mail server that takes everything and forwards nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as email_policy
from socketserver import StreamRequestHandler
from typing import Final

from prefect_claim_dispatch.demo.sinks.serving import IDLE_SECONDS, Sink, repeats_of, server_of

LONGEST_LINE: Final = 65_536


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


class SmtpSink(Sink):
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
        return repeats_of(self.message_ids)

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
        self._sink: SmtpSink = server_of(self).sink
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
