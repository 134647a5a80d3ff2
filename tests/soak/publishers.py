"""A process that publishes in every way there is, until SIGTERM: ``python -m tests.soak.publishers``.

Singly, in batches and in transactions of its own, with keys under all three policies, sometimes rolled back. Each is
written down before it is sent and after it was acknowledged, so that the auditor knows what nobody was told.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from prefect_claim_dispatch import Draft, Receipt, databases, publish, publish_many
from prefect_claim_dispatch.errors import ClaimDispatchError, DuplicateActionError
from prefect_claim_dispatch.settings import load
from tests.kit.ledger import PublishLog
from tests.soak.processors import drawn_payload
from tests.soak.scenario import Part

TYPES = ("soak.mail", "soak.report", "soak.hook")
POLICIES = ("keep", "replace", "raise")
KEYS, ORDERING_KEYS = 8, 60
TURNS_PER_KEYS = 10
"""So long the same few keys are drawn from, by all publishers; a publisher's next life begins with the first again."""
BATCH = 12
ROWS_PER_TURN = 3.5
"""On average; what the pace is reckoned from."""


class RolledBackError(Exception):
    """The publisher thought better of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One action to be published; *policy* only with a *key*."""

    type: str
    payload: dict[str, Any]
    delay: timedelta
    priority: int
    key: str | None = None
    policy: Any = "keep"
    ordering_key: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `publish` takes by name."""
        return {
            "delay": self.delay,
            "priority": self.priority,
            "idempotency_key": self.key,
            "on_conflict": self.policy,
            "ordering_key": self.ordering_key,
        }

    @property
    def draft(self) -> Draft:
        """The same as a draft."""
        draft = Draft().type(self.type).payload(self.payload).after(self.delay).priority(self.priority)
        draft = draft if self.ordering_key is None else draft.ordering_key(self.ordering_key)
        return draft if self.key is None else draft.idempotency(self.key).on_conflict(self.policy)


class Publishing:
    """One publisher's doings, drawn from *dice*."""

    def __init__(self, engine: Engine, log: PublishLog, dice: random.Random, lease_seconds: float) -> None:
        self._engine = engine
        self._url = engine.url.render_as_string(hide_password=False)
        self._log = log
        self._dice = dice
        self._lease_seconds = lease_seconds
        self._turns = 0

    def turn(self) -> None:
        """Publish something in one of the ways."""
        self._turns += 1
        ways = [self._alone, self._alone_in_autocommit, self._in_a_transaction, self._rolled_back, self._batch]
        self._dice.choices(ways, [3, 2, 2, 1, 3])[0]()

    def _alone(self) -> None:
        one = self._wanted()
        self._noted([one], lambda: [publish(self._engine, one.type, one.payload, **one.options)])

    def _alone_in_autocommit(self) -> None:
        one = self._wanted()
        self._noted([one], lambda: [publish(self._url, one.type, one.payload, **one.options)])

    def _in_a_transaction(self) -> None:
        wanted = [self._wanted() for _ in range(2)]
        self._noted(wanted, lambda: self._joined(wanted))

    def _rolled_back(self) -> None:
        wanted = [self._wanted() for _ in range(2)]

        def change_ones_mind() -> list[Receipt]:
            self._joined(wanted, is_rolled_back=True)
            raise AssertionError

        self._noted(wanted, change_ones_mind)

    def _batch(self) -> None:
        wanted = [self._wanted() for _ in range(self._dice.randint(2, BATCH))]
        self._noted(wanted, lambda: publish_many(self._engine, [one.draft for one in wanted]))

    def _joined(self, wanted: list[Wanted], *, is_rolled_back: bool = False) -> list[Receipt]:
        with self._engine.begin() as connection:
            receipts = [publish(connection, one.type, one.payload, **one.options) for one in wanted]
            if is_rolled_back:
                raise RolledBackError
        return receipts

    def _noted(self, wanted: list[Wanted], send: Callable[[], list[Receipt]]) -> None:
        tokens = [self._log.asked(one.type, one.key) for one in wanted]
        try:
            receipts = send()
        except (DuplicateActionError, RolledBackError):
            for token in tokens:
                self._log.refused(token)
        except (ClaimDispatchError, SQLAlchemyError):
            return  # the answer was lost, or there was none: 0 or 1 row for each, and nobody was told
        else:
            for token, one, receipt in zip(tokens, wanted, receipts, strict=True):
                self._log.published(token, receipt, one.type, one.key)

    def _wanted(self) -> Wanted:
        dice = self._dice
        has_key, is_ordered = dice.random() < 0.35, dice.random() < 0.05
        policy = dice.choice(POLICIES) if has_key else "keep"
        return Wanted(
            type=dice.choice(TYPES),
            payload=drawn_payload(dice, self._lease_seconds),
            delay=timedelta(seconds=dice.choice([0, 0, 0, 0.5, 2])),
            priority=dice.randint(0, 2),
            key=f"{policy}-{self._turns // TURNS_PER_KEYS}-{dice.randrange(KEYS)}" if has_key else None,
            policy=policy,
            ordering_key=f"one-by-one-{dice.randrange(ORDERING_KEYS)}" if is_ordered else None,
        )


def main() -> None:
    """Publish at the part's pace until SIGTERM."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    part = Part.of_environment()
    log = PublishLog(part.published)
    publishing = Publishing(databases.engine_for(None), log, random.Random(part.seed), load().lease_seconds)
    while not end.wait(ROWS_PER_TURN / part.per_second):
        publishing.turn()


if __name__ == "__main__":
    main()
