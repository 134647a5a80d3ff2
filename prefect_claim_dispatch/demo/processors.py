"""The demo's processors: small, real effects on loopback, and every way an attempt can end."""

from __future__ import annotations

import json
import os
import smtplib
import time
import urllib.request
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import quote

from prefect import flow, task
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from pydantic import BaseModel

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.outcomes import Cancel, Snooze
from prefect_claim_dispatch.processors import processor


class WelcomeEmail(BaseModel):
    """Whom to welcome."""

    to: str
    name: str


@processor("email.welcome", retries=2, retry_delay_seconds=0.5)
def send_welcome(payload: WelcomeEmail, action: Action) -> None:
    """Send one mail by SMTP; its Message-ID is the action's key, so that a repeat can be recognised."""
    mail = EmailMessage()
    mail["From"], mail["To"] = "demo@example.org", payload.to
    mail["Subject"] = f"Welcome, {payload.name}"
    mail["Message-ID"] = f"<{quote(action.key, safe='')}@demo.example.org>"
    mail.set_content("It is good to have you here.")
    with smtplib.SMTP("127.0.0.1", int(os.environ["DEMO_SMTP_PORT"]), timeout=10) as server:
        server.send_message(mail)
    time.sleep(0.05)
    get_run_logger().info("%s sent", action.reference)


@processor("webhook.deliver", retries=1, retry_delay_seconds=0.2)
def deliver(payload: dict[str, object], action: Action) -> None:
    """POST to a sink that fails the first try of some calls: Prefect's own retries, inside one attempt."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{os.environ['DEMO_HTTP_PORT']}/hooks/{payload['hook']}",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": action.key},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        response.read()
    time.sleep(0.05)


@processor("payment.capture", max_attempts=4, backoff=timedelta(seconds=1))
def capture(action: Action) -> None:
    """Fails its first attempt: the table brings it back after a pause."""
    if action.attempt == 1:
        msg = "the payment provider is away"
        raise ConnectionError(msg)


@processor("stock.sync", retries=2, retry_delay_seconds=0.2)
def synchronise() -> None:
    """Fails its first try only; no attempt of the table is used up."""
    if task_run.run_count == 1:
        msg = "the warehouse hung up"
        raise ConnectionError(msg)


@processor("image.resize", max_attempts=2, backoff=timedelta(seconds=1))
def resize() -> None:
    """A poison action: fails every time, and ends dead."""
    msg = "this picture can't be read"
    raise ValueError(msg)


@processor("order.expire")
def expire(payload: dict[str, object]) -> Cancel | None:
    """An order that was paid meanwhile need not expire."""
    return Cancel("the order was paid") if payload.get("paid") else None


@processor("tax.report")
def wait_for_figures(action: Action) -> Snooze | None:
    """The figures are not in at first: look again later, at no cost."""
    return Snooze(timedelta(seconds=2)) if action.claim_count == 1 else None


@task
def collect() -> list[int]:
    """Gather the figures."""
    return list(range(10))


@task
def render(figures: list[int], target: Path) -> None:
    """Write the report where only one of several attempts can win."""
    partial = target.with_suffix(".partial")
    partial.write_text(f"total {sum(figures)}\n")
    partial.replace(target)


@processor("report.generate")
@flow(name="generate-report")
def generate_report(action: Action) -> None:
    """A report as a subflow with steps of its own."""
    render(collect(), Path(os.environ["DEMO_DIRECTORY"]) / f"report-{action.id}.txt")
