"""The sinks must be believed before anything that they witness: real clients talk to them over real sockets."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from email.message import EmailMessage

import httpx
import pytest

from prefect_claim_dispatch.demo.sinks import HttpReply, HttpSink, SmtpReply, SmtpSink


@pytest.fixture
def smtp() -> Iterator[SmtpSink]:
    with SmtpSink() as sink:
        yield sink


@pytest.fixture
def http() -> Iterator[HttpSink]:
    with HttpSink() as sink:
        yield sink


def mail(
    message_id: str = "<action_logs%3A1@example.com>", text: str = "hello\n", to: str = "ada@example.org"
) -> EmailMessage:
    message = EmailMessage()
    message["Message-ID"] = message_id
    message["From"] = "no-reply@example.com"
    message["To"] = to
    message["Subject"] = "Welcome, Ädà"
    message.set_content(text)
    return message


def send(sink: SmtpSink, *messages: EmailMessage) -> None:
    with smtplib.SMTP(sink.host, sink.port, timeout=5) as client:
        for message in messages:
            client.send_message(message)


def post(sink: HttpSink, path: str, key: str = "action_logs:1") -> httpx.Response:
    with httpx.Client(timeout=5, trust_env=False) as client:
        return client.post(sink.url(path), json={"n": 1}, headers={"Idempotency-Key": key})


def test_mail_arrives_with_envelope_and_text(smtp: SmtpSink) -> None:
    """Subject, text and dot-stuffed lines must come out as they went in.

    Or a lost line would look like a fault of ours.
    """
    text = "first\n.dot\n..two dots\n.\nlast\n"

    send(smtp, mail(text=text))

    (received,) = smtp.mails
    assert (received.sender, received.recipients) == ("no-reply@example.com", ("ada@example.org",))
    assert received.message["Subject"] == "Welcome, Ädà"
    assert received.message.get_content().replace("\r\n", "\n") == text


def test_mail_that_comes_twice_is_seen_twice(smtp: SmtpSink) -> None:
    """A sink that dropped repeats would hide exactly what it is there to show."""
    send(smtp, mail(), mail("<action_logs%3A2@example.com>"), mail())

    assert smtp.message_ids == [f"<action_logs%3A{n}@example.com>" for n in (1, 2, 1)]
    assert smtp.repeats == {"<action_logs%3A1@example.com>": 2}


def test_refused_mail_is_not_taken_and_the_next_one_is(smtp: SmtpSink) -> None:
    """The sender was told *no*: counting the mail as delivered would blame it for its retry."""
    smtp.reply(SmtpReply.refuse(451))

    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(smtp, mail())
    send(smtp, mail())

    assert refused.value.smtp_code == 451
    assert smtp.message_ids == ["<action_logs%3A1@example.com>"]


def test_mail_taken_without_an_answer_leaves_the_sender_in_doubt(smtp: SmtpSink) -> None:
    """The classic cause of duplicates: it arrived, and the sender can't know."""
    smtp.reply(SmtpReply.take_and_hang_up())

    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp, mail())
    send(smtp, mail())

    assert smtp.repeats == {"<action_logs%3A1@example.com>": 2}


def test_refused_recipient_is_named_by_its_code(smtp: SmtpSink) -> None:
    """Processors tell *never* from *later* by this code."""
    smtp.refuse_recipient("ada@example.org", 550)

    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        send(smtp, mail())
    send(smtp, mail(to="bob@example.org"))

    assert refused.value.recipients["ada@example.org"][0] == 550
    assert [taken.recipients for taken in smtp.mails] == [("bob@example.org",)]


def test_mail_cut_off_in_the_middle_is_not_taken(smtp: SmtpSink) -> None:
    """A killed sender leaves half a mail on the wire; RFC 5321 has it that nothing was sent."""
    with socket.create_connection((smtp.host, smtp.port), timeout=5) as client, client.makefile("rb") as replies:
        for command in (b"EHLO me", b"MAIL FROM:<a@b.c>", b"RCPT TO:<d@e.f>", b"DATA", b"Message-ID: <half@b.c>"):
            client.sendall(command + b"\r\n")
        client.shutdown(socket.SHUT_WR)
        answers = replies.read()

    assert b"354" in answers
    assert smtp.mails == []


@pytest.mark.parametrize(
    ("commands", "last_code"),
    [
        ([b"HELO me"], b"250"),
        ([b"NOOP"], b"250"),
        ([b"RSET"], b"250"),
        ([b"STARTTLS"], b"502"),
        ([b"RCPT TO:<d@e.f>"], b"503"),
        ([b"DATA"], b"503"),
        ([b"MAIL FROM:<a@b.c>", b"DATA"], b"503"),
    ],
)
def test_mail_commands_are_answered_as_the_protocol_has_it(
    smtp: SmtpSink, commands: list[bytes], last_code: bytes
) -> None:
    """Out of order or unknown, a command gets an answer: a client that waits for one would hang the demo."""
    with socket.create_connection((smtp.host, smtp.port), timeout=5) as client, client.makefile("rb") as replies:
        for command in (*commands, b"QUIT"):
            client.sendall(command + b"\r\n")
        answers = replies.read().splitlines()

    assert answers[-2].startswith(last_code)
    assert answers[-1].startswith(b"221")


def test_request_is_recorded_with_key_and_body(http: HttpSink) -> None:
    """What the receiver saw, not what the sender says that it sent."""
    answer = post(http, "/hooks/7", key="action_logs:7")

    (request,) = http.requests
    assert answer.status_code == 200
    assert (request.method, request.path, request.body) == ("POST", "/hooks/7", b'{"n":1}')
    assert request.idempotency_key == "action_logs:7"
    assert http.idempotency_keys == ["action_logs:7"]


def test_scripted_failures_come_first_and_only_on_their_path(http: HttpSink) -> None:
    """`fail(path, 2)` must mean two, or a test of retries proves nothing."""
    http.fail("/flaky", times=2)

    statuses = [post(http, path).status_code for path in ("/flaky", "/other", "/flaky", "/flaky")]

    assert statuses == [503, 200, 503, 200]
    assert http.repeats == {"action_logs:1": 2}


def test_scripted_reply_comes_with_its_headers_and_body(http: HttpSink) -> None:
    """`Retry-After` is half of what a 429 says."""
    http.reply("/slow", HttpReply(status=429, headers={"Retry-After": "7"}, body=b"later"))

    answer = post(http, "/slow")

    assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (429, "7", "later")


def test_hanging_up_is_recorded_but_not_as_accepted(http: HttpSink) -> None:
    """The request came; the sender heard nothing and has to come again."""
    http.reply("/", HttpReply(hang_up=True))

    with pytest.raises(httpx.RemoteProtocolError):
        post(http, "/")
    post(http, "/")

    assert [request.status for request in http.requests] == [None, 200]
    assert http.idempotency_keys == ["action_logs:1"]


def test_body_of_unknown_length_is_refused(http: HttpSink) -> None:
    """Reading it as empty would record something that nobody sent."""
    with httpx.Client(timeout=5, trust_env=False) as client:
        answer = client.post(http.url(), content=iter([b"chunk"]))

    assert answer.status_code == 411
    assert http.requests == []


def test_sinks_serve_many_at_once(http: HttpSink, smtp: SmtpSink) -> None:
    """Claim flows run sixteen actions at a time; the record must not lose one of them."""

    def deliver(number: int) -> None:
        post(http, "/", key=f"action_logs:{number}")
        send(smtp, mail(f"<action_logs%3A{number}@example.com>"))

    threads = [threading.Thread(target=deliver, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(http.idempotency_keys) == {f"action_logs:{number}" for number in range(40)}
    assert set(smtp.message_ids) == {f"<action_logs%3A{number}@example.com>" for number in range(40)}
    assert http.repeats == smtp.repeats == {}


@pytest.mark.parametrize(("kind", "hello"), [(SmtpSink, b"NOOP\r\n"), (HttpSink, b"GET / HTTP/1.1\r\n\r\n")])
def test_closing_hangs_up_and_leaves_no_thread(kind: type[SmtpSink | HttpSink], hello: bytes) -> None:
    """A client that stays connected must not keep the sink, its port and its thread."""
    before = threading.active_count()

    with kind() as sink:
        client = socket.create_connection((sink.host, sink.port), timeout=5)
        client.sendall(hello)
        assert client.recv(1024)

    with client:
        while client.recv(1024):
            pass
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((sink.host, sink.port), timeout=1)
