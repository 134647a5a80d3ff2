"""Log records between two processes: what is logged in one is logged in the other, in bounds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from prefect_claim_dispatch.dispatching.records import LAST_KEPT, MAX_LENGTH, MAX_LINE_BYTES, Relay, Shipper


@pytest.fixture
def sent() -> list[dict[str, Any]]:
    """What went through the pipe."""
    return []


@pytest.fixture
def child(sent: list[dict[str, Any]]) -> Iterator[logging.Logger]:
    """A logger of the child's."""
    logger = logging.Logger("app.mail", logging.DEBUG)  # noqa: LOG001 - of the same name as the flow's, and another
    logger.addHandler(Shipper(lambda told: sent.append(json.loads(json.dumps(told)))))
    yield logger
    logger.handlers.clear()


class Kept(logging.Handler):
    """A handler of the flow's, of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What the flow's logger of that name got."""
    logger, handler = logging.getLogger("app.mail"), Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def relayed(sent: list[dict[str, Any]], most: int = 1 << 20) -> None:
    relay = Relay(most)
    for told in sent:
        relay.take(told, len(json.dumps(told)))
    relay.close()


def test_record_arrives_as_it_was_logged(child: logging.Logger, sent: list[dict[str, Any]], kept: Kept) -> None:
    """Name, level, place, time, thread, extras and traceback; what the flow's levels leave out is left out."""
    child.debug("not wanted here")
    try:
        raise LookupError("nobody")
    except LookupError:
        child.exception("mail to %s failed", "Zoë", extra={"order": 7, "to": ["a", "b"]})

    relayed(sent)

    (record,) = kept.records
    there = sent[1]
    assert record.getMessage() == "mail to Zoë failed"
    assert (record.name, record.levelname, record.funcName) == ("app.mail", "ERROR", there["funcName"])
    assert (record.created, record.lineno, record.process) == (there["created"], there["lineno"], there["process"])
    assert (vars(record)["order"], vars(record)["to"]) == (7, "['a', 'b']")
    formatted = logging.Formatter("%(message)s").format(record)
    assert formatted.startswith("mail to Zoë failed\nTraceback (most recent call last):")
    assert formatted.endswith("LookupError: nobody")


def test_enormous_messages_are_cut(child: logging.Logger, sent: list[dict[str, Any]], kept: Kept) -> None:
    """Whatever it is, it fits into what the flow takes for one line."""
    child.warning("\x00" * 10_000_000, extra={f"extra{n}": "\x00" * 10_000 for n in range(1000)})

    relayed(sent)

    assert len(json.dumps(sent[0])) < MAX_LINE_BYTES
    assert kept.records[0].getMessage().endswith(f"... ({10_000_000 - MAX_LENGTH:,} more characters)")


def test_flood_is_bounded_and_its_end_is_told(
    child: logging.Logger, sent: list[dict[str, Any]], kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """It would fill the flow's memory; and the last lines before an end say the most."""
    for number in range(1000):
        child.info("line %s", number)

    relayed(sent, most=len(json.dumps(sent[0])) * 100)

    told = [int(record.getMessage().split()[1]) for record in kept.records]
    first = len(told) - LAST_KEPT
    assert told == [*range(first), *range(1000 - LAST_KEPT, 1000)]
    assert 90 < first < 110
    assert f"{1000 - len(told)} records are left out here" in caplog.text


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"name": 7, "levelno": 20},
        {"name": "app.mail", "levelno": "high"},
        {"name": "app.mail", "levelno": 40, "getMessage": "mine", "msg": None, "exc_info": True, "args": [1]},
        {"name": "x" * 10_000 + ".y", "levelno": 40, "msg": "%s %d", "created": "now"},
    ],
)
def test_what_is_no_record_harms_nobody(told: Mapping[str, Any], kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """A child may send anything: a broken one, or one whose author writes into every pipe."""
    before = len(logging.root.manager.loggerDict)

    relayed([dict(told)])

    assert len(logging.root.manager.loggerDict) == before
    assert all(isinstance(record.getMessage(), str) for record in [*kept.records, *caplog.records])
