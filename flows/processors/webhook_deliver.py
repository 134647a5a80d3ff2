"""`webhook.deliver`: POST a JSON document to a receiver, and tell *try again*, *later* and *never* apart.

    publish(session, "webhook.deliver", {"url": "https://example.org/hooks", "body": {"order_id": 7}})

| the receiver | the action |
| --- | --- |
| 2xx | processed |
| 429 with `Retry-After` | snoozed as long as it asks; costs no attempt |
| no answer, 5xx, 408, 425, 429 without | failed: Prefect's retries, then the table's back-off |
| any other, redirects too | cancelled: the same request will not fare better |

`Idempotency-Key` is the same in every attempt, so that a receiver can drop repeats. The URL is the publisher's: where
publishers are not trusted, let the network decide what a worker may reach.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field, HttpUrl

from prefect_claim_dispatch import Action, Cancel, Snooze, processor

TIMEOUT_SECONDS = 10
TOO_MANY_REQUESTS = 429
TRANSIENT = frozenset({408, 425, TOO_MANY_REQUESTS})
# A receiver must not put us off for years.
LONGEST_SNOOZE = timedelta(days=1)


class Delivery(BaseModel):
    """What to send where; only http and https."""

    url: HttpUrl
    body: dict[str, Any] = Field(default_factory=dict)


class DeliveryError(Exception):
    """Not delivered, may be tried again. The text has neither URL nor body: it ends up in Prefect's database."""


@processor("webhook.deliver", retries=2, retry_delay_seconds=2, max_attempts=10, backoff=timedelta(seconds=30))
def deliver(payload: Delivery, action: Action) -> Snooze | Cancel | None:
    """POST the body, once."""
    status, retry_after = _post(payload, action)
    get_run_logger().info("the receiver of %s answered %d", action.reference, status)
    if httpx.codes.is_success(status):
        return None
    if status == TOO_MANY_REQUESTS and retry_after is not None:
        return Snooze(retry_after, reason="the receiver asks to come later")
    if httpx.codes.is_server_error(status) or status in TRANSIENT:
        msg = f"the receiver answered {status}"
        raise DeliveryError(msg)
    return Cancel(f"the receiver answered {status}")


def _post(payload: Delivery, action: Action) -> tuple[int, timedelta | None]:
    headers = {"Idempotency-Key": action.key}
    try:
        # Streamed, because only the head of the answer matters: a body without end must not hold the worker.
        with httpx.stream(
            "POST", str(payload.url), json=payload.body, headers=headers, timeout=TIMEOUT_SECONDS
        ) as answer:
            return answer.status_code, _delay(answer.headers.get("Retry-After"))
    except httpx.HTTPError as error:
        msg = f"no answer from the receiver ({type(error).__name__})"
        raise DeliveryError(msg) from None


def _delay(retry_after: str | None) -> timedelta | None:
    """`Retry-After` as a delay, from its seconds or its date; None when absent or meaningless."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return timedelta(seconds=min(int(retry_after[:9]), LONGEST_SNOOZE.total_seconds()))
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    aware = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(timedelta(0), min(aware - datetime.now(UTC), LONGEST_SNOOZE))
