"""Drafts: actions not yet inserted, as immutable values; and the receipt that publishing one gives.

Every setter checks what it is given and returns a new draft, so a draft can be a template that many share. The
payload, the rules and the metadata are encoded when they are set: changing the object afterwards changes no draft.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from prefect_claim_dispatch import settings
from prefect_claim_dispatch.checks import (
    OnConflict,
    checked_key,
    checked_policy,
    checked_priority,
    checked_table,
    checked_type,
)
from prefect_claim_dispatch.errors import ConfigurationError, InvalidActionError, InvalidPayloadError
from prefect_claim_dispatch.moments import AT_ONCE, Eligible, Moment, duration, moment, moment_of
from prefect_claim_dispatch.payloads import Payload, assemble, encode_meta, encode_payload
from prefect_claim_dispatch.rules import checked_rules

Gate = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a publish: the action's id, and whether it is new. *skipped* by a gate, it has no id."""

    id: int | None
    outcome: Literal["created", "kept", "replaced", "skipped"]


class Intent(NamedTuple):
    """What a draft says so far: checked, and encoded as it will be stored.

    A named tuple, since a changed copy of one is made for every row of `publish_many`.
    """

    type: str | None = None
    payload: str = "{}"
    moment: Moment | Callable[[], Any] = AT_ONCE
    priority: int = 0
    idempotency_key: str | None = None
    on_conflict: OnConflict = "keep"
    ordering_key: str | None = None
    rules: str | None = None
    meta: str | None = None
    gates: tuple[tuple[Gate, bool], ...] = ()
    table: str | None = None

    def __repr__(self) -> str:
        """Without payload, rules and meta, which are nobody's business in a traceback."""
        return f"Intent(type={self.type!r}, idempotency_key={self.idempotency_key!r}, table={self.table!r})"

    def with_payload(self, payload: str) -> Intent:
        """The same with another encoded *payload*; `_replace` would take as long as the encoding."""
        return Intent(self.type, payload, *self[2:])

    def is_wanted(self) -> bool:
        """Whether every gate lets the payload pass, as it will be stored; what a gate raises passes through."""
        if not self.gates:
            return True
        payload = json.loads(self.payload)
        return all(bool(gate(payload)) is wanted for gate, wanted in self.gates)

    def resolved_moment(self) -> Moment:
        """When it is due; a callable is called now."""
        return self.moment if isinstance(self.moment, Moment) else moment(self.moment())

    def document(self) -> str:
        """The payload with rules and meta in it, as the table will hold it."""
        if self.rules is None and self.meta is None:
            return self.payload
        return assemble(self.payload, rules=self.rules, meta=self.meta, max_bytes=settings.max_payload_bytes())


EMPTY_INTENT: Final = Intent()
Committer = Callable[[Intent], Receipt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An action not yet inserted. Each setter returns a new draft; `commit` publishes it where its publisher does.

    A draft of no publisher, ``Draft().type("email.welcome")``, is for `publish_many`.
    """

    intent: Intent = EMPTY_INTENT
    committer: Committer | None = field(default=None, repr=False, compare=False)
    # Asked once for all drafts made from a template: the environment is slow to read.
    max_bytes: int = field(default_factory=settings.max_payload_bytes, repr=False, compare=False)

    def type(self, name: str) -> Draft:
        """The routing key, dotted: ``email.welcome``."""
        return self._with(type=checked_type(name))

    def payload(self, payload: Payload) -> Draft:
        """What the processor will get: a mapping, a pydantic model or a dataclass instance."""
        intent = self.intent.with_payload(encode_payload(payload, max_bytes=self.max_bytes))
        return Draft(intent=intent, committer=self.committer, max_bytes=self.max_bytes)

    def eligible_at(self, when: Eligible) -> Draft:
        """Not before *when*: an aware datetime, ISO text with an offset, a timedelta, or a callable asked at commit.

        Replaces what `after` set, as `after` replaces this.
        """
        return self._with(moment=moment_of(when, None))

    def after(
        self,
        delay: timedelta | None = None,
        /,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        milliseconds: float = 0,
    ) -> Draft:
        """Not before this much time has passed on the database's clock, from its insertion on."""
        parts = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        return self._with(moment=Moment(delay=duration(delay, **parts, milliseconds=milliseconds)))

    def idempotency(self, key: str) -> Draft:
        """Exactly one action per type and *key*, for as long as its row is kept."""
        return self._with(idempotency_key=checked_key("idempotency_key", key))

    def on_conflict(self, policy: OnConflict) -> Draft:
        """What to do when the key exists: ``keep`` that action, ``replace`` it while it is pending, or ``raise``."""
        return self._with(on_conflict=checked_policy(policy))

    def rules(self, rules: Mapping[str, Any]) -> Draft:
        """A JSONLogic operation that must be true at dispatch; otherwise the action is cancelled."""
        return self._with(rules=checked_rules(rules).text)

    def meta(self, meta: Payload | None = None, /, **more: Any) -> Draft:
        """Facts about the action beside its payload; replaces what was set before."""
        if meta is None or not more:
            return self._with(meta=_encoded_meta(more if meta is None else meta, self.max_bytes))
        if not isinstance(meta, Mapping):
            msg = f"meta() takes a mapping beside {', '.join(more)}, got {type(meta).__name__}; pass one or the other"
            raise InvalidPayloadError(msg)
        return self._with(meta=_encoded_meta({**meta, **more}, self.max_bytes))

    def when(self, gate: Gate) -> Draft:
        """Publish only if *gate* of the payload is true; gates add up."""
        return self._gated(gate, wanted=True)

    def skip_if(self, gate: Gate) -> Draft:
        """Do not publish if *gate* of the payload is true; gates add up."""
        return self._gated(gate, wanted=False)

    def priority(self, priority: int) -> Draft:
        """Higher first among due actions; a smallint."""
        return self._with(priority=checked_priority(priority))

    def ordering_key(self, key: str) -> Draft:
        """Actions that share *key* run one at a time, in the order of their insertion."""
        return self._with(ordering_key=checked_key("ordering_key", key))

    def table(self, name: str) -> Draft:
        """The action table to insert into, ``schema.table`` included."""
        return self._with(table=checked_table(name))

    def commit(self) -> Receipt:
        """Publish it where the publisher it came from does: in the caller's transaction, or in one of its own.

        Raises:
            ConfigurationError: it came from no publisher.
        """
        if self.committer is None:
            msg = "this draft came from no publisher; start with publisher.draft(...), or pass it to publish_many"
            raise ConfigurationError(msg)
        return self.committer(self.intent)

    def _with(self, **changes: Any) -> Draft:
        return Draft(intent=self.intent._replace(**changes), committer=self.committer, max_bytes=self.max_bytes)

    def _gated(self, gate: Gate, *, wanted: bool) -> Draft:
        if not callable(gate):
            name, kind = ("when" if wanted else "skip_if"), gate.__class__.__name__
            msg = f"{name} takes a callable of the payload, got {kind}; write {name}(lambda payload: ...)"
            raise InvalidActionError(msg)
        return self._with(gates=(*self.intent.gates, (gate, wanted)))


def intent_of(
    type: str,  # noqa: A002 - the column's name
    payload: Payload,
    *,
    end_at: Eligible | None,
    delay: timedelta | None,
    priority: int,
    idempotency_key: str | None,
    on_conflict: OnConflict,
    ordering_key: str | None,
    rules: Mapping[str, Any] | None,
    meta: Payload | None,
    table: str | None,
) -> Intent:
    """All that `publish` was given, checked and encoded.

    Raises:
        InvalidActionError: one of its kinds, for whatever may not reach the table.
    """
    max_bytes = settings.max_payload_bytes()
    return Intent(
        type=checked_type(type),
        payload=encode_payload(payload, max_bytes=max_bytes),
        moment=moment_of(end_at, delay),
        priority=checked_priority(priority),
        idempotency_key=None if idempotency_key is None else checked_key("idempotency_key", idempotency_key),
        on_conflict=checked_policy(on_conflict),
        ordering_key=None if ordering_key is None else checked_key("ordering_key", ordering_key),
        rules=None if rules is None else checked_rules(rules).text,
        meta=_encoded_meta(meta, max_bytes),
        table=None if table is None else checked_table(table),
    )


def _encoded_meta(meta: Payload | None, max_bytes: int) -> str | None:
    text = None if meta is None else encode_meta(meta, max_bytes=max_bytes)
    return None if text == "{}" else text
