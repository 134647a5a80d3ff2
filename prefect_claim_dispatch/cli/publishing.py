"""``claim-dispatch publish``: one action from the command line, or one for each line of standard input."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from prefect_claim_dispatch.cli.catalogues import load_catalogue
from prefect_claim_dispatch.cli.options import Common, Duration, Flag, Instant, UsageError, parsed_json
from prefect_claim_dispatch.cli.output import print_json, say
from prefect_claim_dispatch.drafts import Draft, Receipt
from prefect_claim_dispatch.publishing import Publisher, publish_many
from prefect_claim_dispatch.publishing import publish as publish_action

STDIN = "-"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """When and how the action is to be done."""

    end_at: Instant | None = None
    "Not before this instant: 2026-01-31T12:00:00Z."

    delay: Duration | None = None
    "Not before this long from now: 30s, 5m, 2h, 1d."

    priority: int = 0
    "Higher first among due actions; 0 unless given."

    idempotency_key: str | None = None
    "Publish once per type and key."

    ordering_key: str | None = None
    "Actions that share one run one at a time."

    rules: str | None = None
    "JSONLogic that must hold when the action is dispatched."

    on_conflict: Literal["keep", "replace", "raise"] = "keep"
    "What to do when the idempotency key exists; keep unless given."

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments for `publish`."""
        if self.end_at is not None and self.delay is not None:
            msg = "give either --end-at or --delay"
            raise UsageError(msg)
        return {
            "end_at": self.end_at,
            "delay": self.delay,
            "priority": self.priority,
            "idempotency_key": self.idempotency_key,
            "ordering_key": self.ordering_key,
            "rules": None if self.rules is None else parsed_json("--rules", self.rules),
            "on_conflict": self.on_conflict,
        }


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(publish)


def publish(
    type: str,  # noqa: A002 - the word of the table
    payload: Annotated[str, Parameter(allow_leading_hyphen=True)] = "{}",
    /,
    *,
    lines: Flag = False,
    catalogue: tuple[str, ...] | None = None,
    options: PublishOptions | None = None,
    common: Common | None = None,
) -> None:
    """Publish an action.

    Args:
        type: The routing key: email.welcome
        payload: A JSON object, empty unless given; - reads it from standard input.
        lines: Read many payloads from standard input, one on each line; all are published, or none.
        catalogue: A module of action types, which the payload must fit; may be given more than once.
        common: Database, table, and how to answer.
        options: When and how it is to be done.
    """
    common, options = common or Common(), options or PublishOptions()
    keywords = options.keywords()
    if lines:
        _check_lines(payload, options)
        load_catalogue(catalogue)
        _publish_lines(type, keywords, common)
        return
    written = sys.stdin.buffer.read() if payload == STDIN else payload
    document = parsed_json("the payload", written)
    load_catalogue(catalogue)
    receipt = publish_action(common.checked_engine(), type, document, **keywords, table=common.table)
    if common.json:
        print_json(_as_dict(receipt))
    else:
        say(f"{receipt.outcome} {type} #{receipt.id}")


def _check_lines(payload: str, options: PublishOptions) -> None:
    if payload not in (STDIN, "{}"):
        msg = "--lines reads the payloads from standard input; leave PAYLOAD out"
        raise UsageError(msg)
    if options.idempotency_key is not None:
        msg = "--lines publishes many actions, and an idempotency key belongs to one"
        raise UsageError(msg)


def _publish_lines(type_: str, keywords: dict[str, Any], common: Common) -> None:
    drafts = (
        _draft(type_, parsed_json(f"line {number}", line), keywords, common.table)
        for number, line in enumerate(sys.stdin.buffer, 1)
        if line.strip()
    )
    receipts = publish_many(common.checked_engine(), drafts)
    if common.json:
        print_json({"receipts": [_as_dict(receipt) for receipt in receipts]})
    else:
        outcomes = Counter(receipt.outcome for receipt in receipts)
        say(", ".join(f"{outcome} {number:,}" for outcome, number in outcomes.items()) or "no lines")


def _draft(type_: str, document: Any, keywords: dict[str, Any], table: str | None) -> Draft:
    draft = Publisher(table=table).draft(type_).payload(document).priority(keywords["priority"])
    when = keywords["end_at"] or keywords["delay"]
    draft = draft if when is None else draft.eligible_at(when)
    draft = draft if keywords["ordering_key"] is None else draft.ordering_key(keywords["ordering_key"])
    return draft if keywords["rules"] is None else draft.rules(keywords["rules"])


def _as_dict(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "outcome": receipt.outcome}
