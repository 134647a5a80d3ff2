"""The example processors against a real mail server, a real web server and a real directory.

What arrives, and what is concluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

from flows.processors.email_welcome import MailRefusedError, WelcomeEmail, send_welcome
from flows.processors.report_generate import ReportRequest, compose, generate_report, report_path, write
from flows.processors.webhook_deliver import LONGEST_SNOOZE, Delivery, DeliveryError, deliver
from prefect_claim_dispatch import Action, Cancel, Snooze
from prefect_claim_dispatch.demo.sinks import HttpReply, HttpSink, SmtpReply, SmtpSink

ADDRESS = "ada@example.org"


def claimed(type_: str, **changes: Any) -> Action:
    now = datetime.now(UTC)
    action = Action(id=42, type=type_, payload={}, end_at=now, created_at=now, claim_count=1)
    return replace(action, **changes)


@pytest.fixture(autouse=True)
def _outside_a_run() -> Iterator[None]:
    """A processor called by hand has no run to log to."""
    with disable_run_logger():
        yield


@pytest.fixture
def smtp(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpSink]:
    with SmtpSink() as sink:
        monkeypatch.setenv("SMTP_HOST", sink.host)
        monkeypatch.setenv("SMTP_PORT", str(sink.port))
        monkeypatch.setenv("SMTP_SENDER", "hello@example.com")
        yield sink


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpSink]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HttpSink() as sink:
        yield sink


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPORT_DIRECTORY", str(tmp_path / "reports"))
    return tmp_path / "reports"


def welcome(**changes: Any) -> Cancel | None:
    return send_welcome(WelcomeEmail(to=ADDRESS, name="Ada"), claimed("email.welcome", **changes))


def call(http: HttpSink, **changes: Any) -> Snooze | Cancel | None:
    delivery = Delivery.model_validate({"url": http.url("/hooks"), "body": {"order_id": 7}})
    return deliver(delivery, claimed("webhook.deliver", **changes))


def test_welcome_mail_arrives(smtp: SmtpSink) -> None:
    """One mail, to the person, from the configured sender."""
    outcome = welcome()

    (mail,) = smtp.mails
    assert outcome is None
    assert (mail.sender, mail.recipients) == ("hello@example.com", (ADDRESS,))
    assert mail.message["Subject"] == "Welcome, Ada"


def test_repeated_welcome_mail_has_the_same_message_id(smtp: SmtpSink) -> None:
    """Execution is at least once: the second attempt after a lost answer must be recognisable as the same mail."""
    smtp.reply(SmtpReply.take_and_hang_up())

    with pytest.raises(Exception, match="closed"):
        welcome()
    welcome(claim_count=2, fail_count=1)
    welcome(id=43)

    assert smtp.message_ids == ["<action_logs%3A42@example.com>"] * 2 + ["<action_logs%3A43@example.com>"]


def test_recipient_refused_for_good_cancels(smtp: SmtpSink) -> None:
    """Five more attempts at an address that does not exist help nobody; the reason must not carry the address about."""
    smtp.refuse_recipient(ADDRESS, 550)

    outcome = welcome()

    assert outcome == Cancel("the mail server refuses the recipient (550)")
    assert smtp.mails == []


@pytest.mark.parametrize("where", ["recipient", "mail"])
def test_refusal_for_now_fails_without_telling_the_address(smtp: SmtpSink, where: str) -> None:
    """Greylisting: tried again.

    An exception's text is stored by Prefect, so it must not quote what the server quotes.
    """
    if where == "recipient":
        smtp.refuse_recipient(ADDRESS, 451)
    else:
        smtp.reply(SmtpReply(code=451, text=f"not now, {ADDRESS}", takes=False))

    with pytest.raises(MailRefusedError) as refused:
        welcome()

    assert "451" in str(refused.value)
    assert ADDRESS not in str(refused.value)
    assert refused.value.__suppress_context__


def test_unreachable_mail_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is an exception, so that Prefect's retries and then the table's back-off see to it."""
    with SmtpSink() as gone:
        monkeypatch.setenv("SMTP_HOST", gone.host)
        monkeypatch.setenv("SMTP_PORT", str(gone.port))

    with pytest.raises(OSError, match="refused"):
        welcome()


@pytest.mark.parametrize(
    "payload",
    [
        {"to": "a@example.org\r\nBcc: b@example.org", "name": "Ada"},
        {"to": "a@example.org, b@example.org", "name": "Ada"},
        {"to": "nobody", "name": "Ada"},
        {"to": ADDRESS, "name": "Ada\r\nBcc: b@example.org"},
        {"to": ADDRESS},
    ],
)
def test_welcome_payload_that_is_not_one_recipient_is_refused(payload: dict[str, str]) -> None:
    """Payloads come from any language and from any form field: no second recipient slips in."""
    with pytest.raises(ValidationError):
        WelcomeEmail.model_validate(payload)


def test_webhook_arrives_with_its_key(http: HttpSink) -> None:
    """The receiver gets the body as JSON and the key by which it can drop a repeat."""
    outcome = call(http)

    (request,) = http.requests
    assert outcome is None
    assert (request.method, request.body) == ("POST", b'{"order_id":7}')
    assert request.headers["content-type"] == "application/json"
    assert http.idempotency_keys == ["action_logs:42"]


@pytest.mark.parametrize("reply", [HttpReply(status=503), HttpReply(status=408), HttpReply(hang_up=True)], ids=str)
def test_webhook_that_may_succeed_later_fails_and_keeps_its_key(http: HttpSink, reply: HttpReply) -> None:
    """Both attempts carry one key, and the exception neither URL nor body."""
    http.reply("/hooks", reply)

    with pytest.raises(DeliveryError) as failed:
        call(http)
    call(http, claim_count=2, fail_count=1)

    assert {request.idempotency_key for request in http.requests} == {"action_logs:42"}
    assert http.repeats == {}
    assert str(http.port) not in str(failed.value)
    assert failed.value.__cause__ is None


def test_unreachable_receiver_fails() -> None:
    """Connection refused is the receiver's bad moment, not the action's fault."""
    with HttpSink() as gone:
        pass

    with pytest.raises(DeliveryError, match="ConnectError"):
        call(gone)


@pytest.mark.parametrize("status", [400, 404, 410, 302])
def test_webhook_that_will_never_succeed_cancels(http: HttpSink, status: int) -> None:
    """A redirect too: the payload goes only where the publisher said."""
    http.reply("/hooks", HttpReply(status=status, headers={"Location": http.url("/elsewhere")}))

    outcome = call(http)

    assert outcome == Cancel(f"the receiver answered {status}")
    assert [request.path for request in http.requests] == ["/hooks"]


def test_busy_receiver_snoozes_as_long_as_it_asks(http: HttpSink) -> None:
    """In seconds; costs no attempt."""
    http.reply("/hooks", HttpReply(status=429, headers={"Retry-After": "120"}))

    outcome = call(http)

    assert isinstance(outcome, Snooze)
    assert outcome.delay == timedelta(minutes=2)


def test_busy_receiver_may_name_an_instant(http: HttpSink) -> None:
    """The other form that RFC 9110 allows."""
    later = datetime.now(UTC) + timedelta(minutes=10)
    http.reply("/hooks", HttpReply(status=429, headers={"Retry-After": format_datetime(later, usegmt=True)}))

    outcome = call(http)

    assert isinstance(outcome, Snooze)
    assert timedelta(minutes=9) < outcome.delay <= timedelta(minutes=10)


@pytest.mark.parametrize("asked", ["9" * 40, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_receiver_can_not_put_an_action_off_for_years(http: HttpSink, asked: str) -> None:
    """Whoever runs the receiver must not decide that we never look again."""
    http.reply("/hooks", HttpReply(status=429, headers={"Retry-After": asked}))

    outcome = call(http)

    assert isinstance(outcome, Snooze)
    assert outcome.delay == LONGEST_SNOOZE


@pytest.mark.parametrize("asked", ["", "soon", "-5", "1.5"])
def test_busy_receiver_that_does_not_say_when_fails(http: HttpSink, asked: str) -> None:
    """Back-off decides then."""
    http.reply("/hooks", HttpReply(status=429, headers={"Retry-After": asked}))

    with pytest.raises(DeliveryError, match="429"):
        call(http)


def test_instant_in_the_past_means_at_once(http: HttpSink) -> None:
    """The receiver's clock may be behind; a negative delay would be refused."""
    http.reply("/hooks", HttpReply(status=429, headers={"Retry-After": "Mon, 01 Jan 2024 00:00:00 -0000"}))

    outcome = call(http)

    assert isinstance(outcome, Snooze)
    assert outcome.delay == timedelta(0)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "file:///etc/passwd", "javascript:alert(1)", "example.org"])
def test_webhook_goes_by_http_only(url: str) -> None:
    """What a publisher may name is a web address and nothing else that a URL can be."""
    with pytest.raises(ValidationError):
        Delivery.model_validate({"url": url})


def test_report_is_a_table_with_its_total() -> None:
    """A task's function is tested like any function."""
    text = compose.fn(ReportRequest(title="Orders", figures={"open": 3, "paid": 39}))

    assert text.splitlines() == [
        "# Orders",
        "",
        "| figure | value |",
        "| --- | ---: |",
        "| paid | 39 |",
        "| open | 3 |",
        "| total | 42 |",
    ]


def test_repeated_report_replaces_its_own_file(reports: Path) -> None:
    """The path is the action's, not the attempt's: no second file, no half of one, no leftover draft."""
    first = claimed("report.generate")

    write.fn("old, and longer than the new one", first)
    write.fn("new", replace(first, claim_count=2, fail_count=1))
    write.fn("another", replace(first, id=43))

    assert report_path(first) == reports / "action_logs%3A42.md"
    assert {path.name: path.read_text(encoding="utf-8") for path in reports.iterdir()} == {
        "action_logs%3A42.md": "new",
        "action_logs%3A43.md": "another",
    }


def test_report_stays_in_its_directory_whatever_the_table_is_called(reports: Path) -> None:
    """Table names may hold anything printable; a path must not follow them."""
    path = report_path(claimed("report.generate", table="../../x"))

    assert path.parent == reports
    assert path.resolve().parent == reports.resolve()


@pytest.mark.timeout(120)
def test_report_flow_runs_its_steps_under_prefect(reports: Path) -> None:
    """The flow as it is registered, unchanged by the decorator: callable on its own, a run with two task runs."""
    action = claimed("report.generate")

    with prefect_test_harness(server_startup_timeout=90):
        state = generate_report(ReportRequest(title="Orders", figures={"open": 3}), action, return_state=True)

    assert state.is_completed()
    assert "| total | 3 |" in report_path(action).read_text(encoding="utf-8")
    assert [path.suffix for path in reports.iterdir()] == [".md"]
