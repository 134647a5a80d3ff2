"""`email.welcome`: greet a new user by mail, through the SMTP server that the ``SMTP_*`` variables name.

    publish(session, "email.welcome", {"to": "ada@example.org", "name": "Ada"}, idempotency_key="welcome:42")

A crash between sending and settling makes the mail go out again. Its Message-ID is then the same, so that servers and
readers that
drop duplicates can: the nearest to exactly once that SMTP allows.
"""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from typing import Annotated
from urllib.parse import quote

from prefect.logging import get_run_logger
from pydantic import BaseModel, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefect_claim_dispatch import Action, Cancel, processor

Address = Annotated[str, StringConstraints(pattern=r'^[^@\s<>(),;:"\\]+@[^@\s<>(),;:"\\]+$', max_length=254)]
ONE_LINE = r"^[^\r\n]*$"


class WelcomeEmail(BaseModel):
    """Whom to greet."""

    to: Address
    name: Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=ONE_LINE)]


class SmtpSettings(BaseSettings):
    """``SMTP_HOST``, ``SMTP_PORT``, ...; with a username the connection is encrypted before it is told."""

    model_config = SettingsConfigDict(env_prefix="SMTP_", hide_input_in_errors=True)

    host: str = "localhost"
    port: int = 25
    username: str | None = None
    password: SecretStr = SecretStr("")
    sender: Address = "no-reply@example.com"
    timeout_seconds: float = 10


class MailRefusedError(Exception):
    """The server did not take the mail; may be tried again. The text has the reply's code, not the address."""


@processor("email.welcome", retries=2, retry_delay_seconds=5, max_attempts=8)
def send_welcome(payload: WelcomeEmail, action: Action) -> Cancel | None:
    """Send one mail; an address that the server refuses for good cancels the action."""
    settings = SmtpSettings()
    try:
        _send(_welcome(payload, action, settings.sender), settings)
    except smtplib.SMTPRecipientsRefused as refused:
        code = max(code for code, _ in refused.recipients.values())
        if code >= 500:  # noqa: PLR2004 - RFC 5321: 5xx is for good, 4xx for now
            return Cancel(f"the mail server refuses the recipient ({code})")
        raise _refusal(code) from None
    except smtplib.SMTPResponseException as refused:
        # The server's own text may quote the address, and an exception's text ends up in Prefect's database.
        raise _refusal(refused.smtp_code) from None
    get_run_logger().info("mail sent for %s", action.reference)
    return None


def message_id(action: Action, sender: str) -> str:
    """The same for every attempt at *action*: ``<action_logs%3A42@example.com>``."""
    return f"<{quote(action.key, safe='')}@{sender.rpartition('@')[2]}>"


def _welcome(payload: WelcomeEmail, action: Action, sender: str) -> EmailMessage:
    message = EmailMessage()
    message["Message-ID"] = message_id(action, sender)
    message["From"] = sender
    message["To"] = payload.to
    message["Subject"] = f"Welcome, {payload.name}"
    message.set_content(f"Hello {payload.name},\n\ngood to have you here.\n")
    return message


def _send(message: EmailMessage, settings: SmtpSettings) -> None:
    with smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout_seconds) as smtp:
        if settings.username is not None:
            smtp.starttls(context=ssl.create_default_context())
            smtp.login(settings.username, settings.password.get_secret_value())
        smtp.send_message(message)


def _refusal(code: int) -> MailRefusedError:
    return MailRefusedError(f"the mail server answered {code}; check SMTP_HOST, SMTP_USERNAME and the server's log")
