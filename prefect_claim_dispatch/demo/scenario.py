"""What the demo publishes, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from prefect_claim_dispatch.demo.sinks import HttpSink
from prefect_claim_dispatch.publishing import Publisher, publish, publish_many

MAILS = 160
CALLS = 90
FLAKY_CALLS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How many actions of one type must end in each status."""

    type: str
    processed: int = 0
    dead: int = 0
    cancelled: int = 0
    pending: int = 0
    what: str = ""


EXPECTED = (
    Expected(
        type="email.welcome",
        processed=MAILS,
        dead=2,
        what="mails by SMTP; two malformed rows written by plain SQL",
    ),
    Expected(
        type="webhook.deliver",
        processed=CALLS,
        what="calls by HTTP; some fail their first try (Prefect retries)",
    ),
    Expected(type="payment.capture", processed=6, what="fail their first attempt (retried from the table)"),
    Expected(type="stock.sync", processed=4, what="fail their first try (Prefect retries)"),
    Expected(type="image.resize", dead=1, what="poison: fails every attempt"),
    Expected(type="order.expire", processed=3, cancelled=3, what="two cancelled by Cancel, one by its rules"),
    Expected(type="tax.report", processed=2, what="snoozed once"),
    Expected(type="report.generate", processed=3, what="subflows; one scheduled seconds ahead"),
    Expected(type="nobody.listens", pending=1, what="no processor: waits, reported as unroutable"),
)


def script_failures(calls: HttpSink) -> None:
    """Let the first try of some calls fail."""
    for hook in range(FLAKY_CALLS):
        calls.fail(f"/hooks/{hook}", times=1)


def publish_all(engine: Engine) -> list[str]:
    """Publish the scenario; returns a line for each thing worth telling."""
    told: list[str] = []
    publisher = Publisher(engine)
    drafts = [
        publisher.draft("email.welcome").payload({"to": f"user{n}@example.org", "name": f"User {n}"})
        for n in range(MAILS - 1)
    ]
    drafts += [publisher.draft("webhook.deliver").payload({"hook": n}) for n in range(CALLS)]
    drafts += [publisher.draft("payment.capture").payload({"amount": n}) for n in range(6)]
    drafts += [publisher.draft("stock.sync")] * 4
    drafts += [publisher.draft("image.resize"), publisher.draft("nobody.listens")]
    drafts += [publisher.draft("order.expire").payload({"order": n, "paid": n in (0, 1)}) for n in range(5)]
    drafts += [publisher.draft("tax.report").payload({"year": 2020 + n}) for n in range(2)]
    drafts += [publisher.draft("report.generate").payload({"month": n}) for n in range(2)]
    receipts = publish_many(engine, drafts)
    told.append(f"{len(receipts)} actions published in one transaction")

    first = publish(engine, "email.welcome", {"to": "once@example.org", "name": "Once"}, idempotency_key="welcome:once")
    again = publish(engine, "email.welcome", {"to": "once@example.org", "name": "Once"}, idempotency_key="welcome:once")
    told.append(
        f"published twice with one idempotency key: #{first.id} {first.outcome}, then #{again.id} {again.outcome}"
    )

    never = {"==": [{"var": "payload.status"}, "unpaid"]}
    ruled = publish(engine, "order.expire", {"order": 99, "status": "paid"}, rules=never)
    told.append(f"#{ruled.id} order.expire has the rule 'only while unpaid', and is paid")

    later = publish(engine, "report.generate", {"month": 12}, delay=timedelta(seconds=8))
    told.append(f"#{later.id} report.generate is scheduled 8 seconds ahead")

    with engine.begin() as connection:
        for payload in ('["no object"]', '{"to": 5}'):
            # As another language would, behind the library's back.
            connection.exec_driver_sql(
                "INSERT INTO action_logs (type, payload) VALUES ('email.welcome', ?)", (payload,)
            )
    told.append("2 malformed rows inserted by plain SQL")
    return told


def shortfalls(counted: dict[tuple[str, str], int]) -> list[str]:
    """What differs from `EXPECTED` in *counted*, rows by (type, status)."""
    wrong: list[str] = []
    for expected in EXPECTED:
        for status in ("processed", "dead", "cancelled", "pending", "claimed"):
            wanted: Any = getattr(expected, status, 0)
            found = counted.get((expected.type, status), 0)
            if wanted != found:
                wrong.append(f"{expected.type}: {found} {status}, expected {wanted}")
    return wrong
