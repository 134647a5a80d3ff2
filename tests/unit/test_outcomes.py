"""What an attempt came to, as values; and that no secret or hostile text gets through them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_claim_dispatch.outcomes import MAX_DELAY, MAX_ERROR_LENGTH, Cancel, Failed, Snooze, redacted

# Letters that stand in none of the words around them, so that finding the secret means that it leaked.
secrets = st.text(alphabet="QXZJ4789_~.-", min_size=8, max_size=40)


@pytest.mark.parametrize(
    "template",
    [
        "could not connect to postgresql://app:{}@db.internal:5432/shop",
        "amqp://user:{}@host/vhost refused, so did https://me:{}@example.com/x?y=1",
        "sqlite+pysqlite://:{}@/file",
        "password={} host=db",
        "PASSWORD: {}",
        "{{'password': '{}', 'user': 'me'}}",
        '{{"api_key": "{}"}}',
        "api-key={}&x=1",
        "token = '{}'",
        "Authorization: Bearer {}",
        "secret={};other=1",
    ],
)
@given(secret=secrets)
def test_secrets_are_taken_out(template: str, secret: str) -> None:
    """Errors go into the table, the logs and the report: a password in one of them is in all backups from then on."""
    text = redacted(template.format(*[secret] * template.count("{}")))

    assert secret not in text
    assert "***" in text


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: no such user 42",
        "http://example.com:8080/a/b",
        "see https://docs.example.com/tokens",
        "the password was wrong",
        "",
    ],
)
def test_ordinary_text_is_kept(text: str) -> None:
    """An error that says nothing any more helps nobody."""
    assert redacted(text) == text


@given(text=st.text(alphabet=st.characters(), max_size=300), limit=st.integers(1, 200))
def test_redacted_text_is_short_and_storable(text: str, limit: int) -> None:
    """Whatever a processor raises.

    No NUL (PostgreSQL refuses it), no lone surrogate (neither encodes it), no longer than the limit.
    """
    result = redacted(text, limit)

    assert len(result) <= limit
    assert "\x00" not in result
    result.encode("utf-8")


def test_enormous_text_costs_no_time() -> None:
    """A hundred megabytes of error text would hold up everybody's settlement."""
    text = "password=" * 10_000_000
    begun = time.perf_counter()

    redacted(text)

    assert time.perf_counter() - begun < 0.5


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "type_", "message"),
    [
        (ValueError("bad"), "ValueError", "bad"),
        (KeyError("x"), "KeyError", "'x'"),
        (SystemExit(2), "SystemExit", "2"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (Unprintable(), "Unprintable", "<RuntimeError while printing the error>"),
        (Exiting(), "Exiting", "<SystemExit while printing the error>"),
    ],
)
def test_every_exception_becomes_a_failure(error: BaseException, type_: str, message: str) -> None:
    """One that can't even be printed harms only its own row."""
    failed = Failed.from_exception(error)

    assert (failed.error_type, failed.message) == (type_, message)


def test_failure_shows_no_message_in_its_repr() -> None:
    """A repr ends up in logs, which the message may not (C1)."""
    assert "hunter" not in repr(Failed(error_type="E", message="hunter"))


def test_failure_keeps_no_more_than_it_may() -> None:
    """It waits in memory with thousands of others until it is written."""
    assert len(Failed.from_exception(ValueError("x" * 10_000_000)).message) == MAX_ERROR_LENGTH


@pytest.mark.parametrize("delay", [timedelta(microseconds=-1), timedelta(days=-1), MAX_DELAY + timedelta(seconds=1)])
def test_snooze_refuses_what_no_clock_can_add(delay: timedelta) -> None:
    """Refused where it is written, in the processor, and not as an overflow in a batch of a thousand others."""
    with pytest.raises(ValueError, match="Snooze delay must be from zero to 3650 days, got "):
        Snooze(delay)


@pytest.mark.parametrize("delay", [60, 1.5, "5m", None])
def test_snooze_asks_for_a_timedelta(delay: Any) -> None:
    """Seconds or minutes? The message says what to write."""
    with pytest.raises(TypeError, match=r"write Snooze\(timedelta\(minutes=5\)\)"):
        Snooze(delay)


@pytest.mark.parametrize("reason", [404, None, LookupError("gone"), b"gone", ["gone"]])
def test_reason_must_be_text(reason: Any) -> None:
    """Refused where it is made, in the processor: later it would be the whole batch that has no verdict."""
    with pytest.raises(TypeError, match=r"Cancel takes a text as its reason, got \w+; write Cancel\(str\(reason\)\)"):
        Cancel(reason)
    with pytest.raises(TypeError, match=r"Snooze takes a text as its reason, got \w+; write Snooze\(delay, str"):
        Snooze(timedelta(0), reason)


def test_snooze_and_cancel_are_values() -> None:
    """Processors return them and their tests compare them."""
    assert Snooze(timedelta(0)) == Snooze(timedelta(0))
    assert Cancel("paid") == Cancel("paid")
    assert Cancel("paid") != Cancel("late")
