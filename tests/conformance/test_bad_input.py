"""Bad input, as a table: each is refused before any SQL, by the same error on every database, in words that help."""

from __future__ import annotations

import math
import pickle
import shutil
import traceback
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, SecretStr, model_serializer
from sqlalchemy import Engine, MetaData, Table, func, select
from sqlalchemy.orm import Session, sessionmaker

from prefect_claim_dispatch import Draft, Publisher, Receipt, engines, publish, publish_many
from prefect_claim_dispatch.errors import (
    ClaimDispatchError,
    ConfigurationError,
    InvalidActionError,
    InvalidInstantError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidRulesError,
    InvalidTypeError,
)
from prefect_claim_dispatch.moments import MAX_DELAY
from tests.conftest import DATABASES, MIGRATE, shared_postgres
from tests.kit import postgres
from tests.kit.tables import TABLE, statements_of

SECRET = "hunter2"
GOOD = Draft().type("good")


class Names(Enum):
    TYPE = "email.welcome"
    RULES = "__rules"
    A = "a"


class Numbers(IntEnum):
    TOO_MANY = 40_000


class Unreadable(Mapping[str, Any]):
    """A mapping with a key that it has not, as a lazy one may be."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(SECRET)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Endless(Unreadable):
    """A mapping that has always one more."""

    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        return map(str, count())


class Obliging:
    """An object that has every attribute one asks for."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: {}


@dataclass
class Unset:
    a: int = field(init=False)


class Login(BaseModel):
    user: str = "me"
    password: SecretStr = SecretStr(SECRET)


class Listed(BaseModel):
    @model_serializer
    def as_list(self) -> list[int]:
        return [1]


class BrokenZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta:
        raise RuntimeError(SECRET)


class FarZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta:
        return timedelta(days=3)


class NoZone(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> None:
        return None


class Colour(str, Enum):  # noqa: UP042 - its str() is "Colour.RED"
    RED = "red"


class Shifting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "\x00"


def nested(levels: int, leaf: Any = None) -> dict[str, Any]:
    value: Any = leaf
    for _ in range(levels):
        value = {"a": value}
    return value


def negated(times: int) -> Any:
    rules: Any = True
    for _ in range(times):
        rules = {"!": rules}
    return rules


def cycle(*, through_list: bool) -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = [value] if through_list else value
    return value


def one(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda bind: publish(bind, *arguments, **options)


def quick(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda bind: Publisher(bind).quick(*arguments, **options)


def fluent(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda bind: Publisher(bind).publish(lambda draft: build(draft.type("a")))


def many(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The second of a batch, after one that is good."""
    return lambda bind: publish_many(bind, (make(GOOD) for make in (lambda draft: draft, build)))


def at(url: str) -> Callable[[Any], Any]:
    return lambda _: publish(url, "a")


Case = tuple[Callable[[Any], Any], type[ClaimDispatchError], tuple[str, ...]]
TYPE, PAYLOAD, INSTANT = InvalidTypeError, InvalidPayloadError, InvalidInstantError
KEY, RULES, ACTION, SETTING = InvalidKeyError, InvalidRulesError, InvalidActionError, ConfigurationError
NUL, SURROGATE, NOT_FINITE = "a NUL character; remove it", "a lone surrogate; decode", "is NaN or infinite"

TYPES: dict[str, Case] = {
    "empty": (one(""), TYPE, ("type must have 1 to 120 characters", "got 0")),
    "121 characters": (quick("x" * 121), TYPE, ("type must have 1 to 120 characters", "got 121")),
    "121 wide characters": (one("\U0001f600" * 121), TYPE, ("1 to 120 characters", "got 121")),
    "a megabyte": (one("x" * 2**20), TYPE, ("1 to 120 characters", "got 1048576")),
    "NUL": (many(lambda draft: draft.type("a\x00b")), TYPE, (r"type 'a\x00b'", "control characters", "remove them")),
    "escape": (one("a\x1b[31m"), TYPE, (r"type 'a\x1b[31m'", "control characters", "remove them")),
    "tab": (fluent(lambda draft: draft.type("a\tb")), TYPE, (r"type 'a\tb'", "control characters", "remove them")),
    "C1 control": (one("a\x85b"), TYPE, (r"type 'a\x85b'", "control characters")),
    "no-break space": (one("a\xa0b"), TYPE, (r"type 'a\xa0b'", "separators")),
    "line separator": (quick("a\u2028b"), TYPE, (r"type 'a\u2028b'", "separators")),
    "ideographic space": (one("a\u3000b"), TYPE, (r"type 'a\u3000b'", "separators")),
    "bidirectional override": (one("a\u202eb"), TYPE, (r"type 'a\u202eb'", "control characters")),
    "zero-width space": (one("a\u200bb"), TYPE, (r"type 'a\u200bb'", "control characters")),
    "byte order mark": (one("\ufeffa"), TYPE, (r"type '\ufeffa'", "control characters")),
    "lone surrogate": (many(lambda draft: draft.type("\udcff")), TYPE, (r"type '\udcff'", "remove them")),
    "space around": (one(" a"), TYPE, ("type ' a'", "spaces around it; remove them")),
    "enum without text": (one(Names.TYPE), TYPE, ("type must be text, got Names", "write 'email.welcome'")),
    "list": (quick(["a"]), TYPE, ("type must be text, got list", "write 'email.welcome'")),
    "bytearray": (one(bytearray(b"a")), TYPE, ("type must be text, got bytearray",)),
    "class": (lambda bind: Publisher(bind).draft(str), TYPE, ("type must be text, got type",)),
    "none was set": (
        lambda bind: Publisher(bind).draft().commit(),
        TYPE,
        ("has no type", "call .type('email.welcome')"),
    ),
    "none was set, in a batch": (lambda bind: publish_many(bind, [GOOD, Draft()]), TYPE, ("the draft has no type",)),
}
PAYLOADS: dict[str, Case] = {
    "None": (quick("a", None, None), PAYLOAD, ("must be a JSON object, got NoneType", "pass a mapping")),
    "pairs": (one("a", [("a", 1)]), PAYLOAD, ("must be a JSON object, got list", "pass a mapping")),
    "JSON text": (fluent(lambda draft: draft.payload('{"a": 1}')), PAYLOAD, ("got str", "pass a mapping")),
    "JSON bytes": (one("a", b"{}"), PAYLOAD, ("must be a JSON object, got bytes", "pass a mapping")),
    "model's class": (one("a", Login), PAYLOAD, ("got ModelMetaclass", "a pydantic model or a dataclass instance")),
    "dataclass itself": (one("a", Unset), PAYLOAD, ("must be a JSON object, got type", "a dataclass instance")),
    "dataclass half made": (one("a", Unset()), PAYLOAD, ("at $ is a Unset", "can't be serialized (AttributeError)")),
    "model that is a list": (one("a", Listed()), PAYLOAD, ("must be a JSON object, got Listed",)),
    "namespace": (one("a", SimpleNamespace(a=1)), PAYLOAD, ("must be a JSON object, got SimpleNamespace",)),
    "object with every attribute": (one("a", {"b": Obliging()}), PAYLOAD, ("at $.b is a Obliging", "convert it")),
    "mapping that raises": (one("a", Unreadable()), PAYLOAD, ("at $ is a Unreadable", "(KeyError)")),
    "mapping that raises within": (
        many(lambda draft: draft.payload({"a": [Unreadable()]})),
        PAYLOAD,
        ("at $.a[0] is a Unreadable", "can't be serialized (KeyError)"),
    ),
    "endless mapping": (one("a", Endless()), PAYLOAD, ("larger than 1048576 bytes", "pass its key")),
    "reserved rules": (one("a", {"__rules": None}), PAYLOAD, ("reserved key '__rules'", "pass rules=... instead")),
    "reserved meta": (quick("a", None, {"__meta": {}}), PAYLOAD, ("reserved key '__meta'", "pass meta=... instead")),
    "reserved, as an enum": (one("a", {Names.RULES: {}}), PAYLOAD, ("reserved key '__rules'", "pass rules=...")),
    "reserved, in a chain of mappings": (one("a", ChainMap({}, {"__meta": 1})), PAYLOAD, ("reserved key '__meta'",)),
    "key twice": (one("a", {"b": {Names.A: 1, "a": 2}}), PAYLOAD, ("at $.b has the key 'a' twice", "keep one")),
    "integer key": (fluent(lambda draft: draft.payload({7: 1})), PAYLOAD, ("a key that is int, not text", "str(key)")),
    "float key": (one("a", {"b": {1.5: 1}}), PAYLOAD, ("at $.b has a key that is float", "write str(key)")),
    "None key": (quick("a", None, {None: 1}), PAYLOAD, ("a key that is NoneType", "write str(key)")),
    "bool key": (one("a", {"b": [{False: 1}]}), PAYLOAD, ("at $.b[0] has a key that is bool", "write str(key)")),
    "bytes key": (one("a", {b"a": 1}), PAYLOAD, ("a key that is bytes, not text",)),
    "date key": (one("a", {date(2026, 1, 1): 1}), PAYLOAD, ("a key that is date, not text",)),
    "NUL in text": (many(lambda draft: draft.payload({"b": "\x00"})), PAYLOAD, (f"at $.b holds {NUL}",)),
    "NUL in a key": (one("a", {"b": {"\x00": 1}}), PAYLOAD, (f"at $.b has a key with {NUL}",)),
    "NUL in a tuple": (one("a", {"b": (1, "x\x00")}), PAYLOAD, (f"at $.b[1] holds {NUL}",)),
    "high surrogate": (one("a", {"b": "\ud83d"}), PAYLOAD, (f"at $.b holds {SURROGATE}", "errors='replace'")),
    "low surrogate": (quick("a", None, {"b": "\ude00"}), PAYLOAD, (f"at $.b holds {SURROGATE}",)),
    "surrogates in the wrong order": (one("a", {"b": "\ude00\ud83d"}), PAYLOAD, (SURROGATE,)),
    "surrogate in a key": (one("a", {"\udfff": 1}), PAYLOAD, ("has a key with a lone surrogate",)),
    "NaN": (quick("a", None, {"b": math.nan}), PAYLOAD, (f"at $.b {NOT_FINITE}", "pass None or text")),
    "infinity": (many(lambda draft: draft.payload({"b": {"c": math.inf}})), PAYLOAD, (f"at $.b.c {NOT_FINITE}",)),
    "negative infinity": (one("a", {"b": [-math.inf]}), PAYLOAD, (f"at $.b[0] {NOT_FINITE}",)),
    "Decimal NaN": (one("a", {"b": Decimal("-sNaN")}), PAYLOAD, (f"at $.b {NOT_FINITE}",)),
    "Decimal infinity": (one("a", {"b": Decimal("Infinity")}), PAYLOAD, (f"at $.b {NOT_FINITE}",)),
    "641 digits": (one("a", {"b": 10**640}), PAYLOAD, ("at $.b is an integer of more than 640 digits", "as text")),
    "10,000 digits": (fluent(lambda draft: draft.payload({"b": -(10**10_000)})), PAYLOAD, ("more than 640 digits",)),
    "101 levels": (
        one("a", nested(101)),
        PAYLOAD,
        ("nested deeper than 100 levels", "flatten it, or pass a reference"),
    ),
    "10,000 levels": (one("a", nested(10_000)), PAYLOAD, ("nested deeper than 100 levels",)),
    "101 levels of lists": (one("a", {"b": nested(99, [[]])}), PAYLOAD, ("nested deeper than 100 levels",)),
    "cycle": (
        one("a", cycle(through_list=False)),
        PAYLOAD,
        ("at $.a contains itself", "pass a copy without the cycle"),
    ),
    "cycle through a list": (quick("a", None, cycle(through_list=True)), PAYLOAD, ("at $.a[0] contains itself",)),
    "one byte too many": (one("a", {"b": "x" * (2**20 - 7)}), PAYLOAD, ("larger than 1048576 bytes", "pass its key")),
    "bytes, not characters": (one("a", {"b": "\u20ac" * 2**19}), PAYLOAD, ("CLAIM_DISPATCH_MAX_PAYLOAD_BYTES",)),
    "many small values": (one("a", {"b": [None] * 2**19}), PAYLOAD, ("larger than 1048576 bytes",)),
    "bytes": (one("a", {"b": b"\x89PNG"}), PAYLOAD, ("at $.b is bytes, which JSON has not", "pass base64 text")),
    "memoryview": (one("a", {"b": memoryview(b"")}), PAYLOAD, ("at $.b is bytes",)),
    "set": (quick("a", None, {"b": {1}}), PAYLOAD, ("at $.b is a set, which JSON has not", "pass sorted(...)")),
    "complex": (
        one("a", {"b": 1j}),
        PAYLOAD,
        ("at $.b is a complex", "convert it to text, numbers, lists or mappings"),
    ),
    "range": (one("a", {"b": range(3)}), PAYLOAD, ("at $.b is a range, which has no JSON form here",)),
    "path": (one("a", {"b": Path("/tmp")}), PAYLOAD, ("at $.b is a PosixPath", "convert it to text")),
    "exception": (one("a", {"b": ValueError(SECRET)}), PAYLOAD, ("at $.b is a ValueError", "convert it")),
    "secret": (one("a", {"b": SecretStr(SECRET)}), PAYLOAD, ("at $.b is a secret", "pass a reference to it")),
    "secret in a model": (
        fluent(lambda draft: draft.payload(Login())),
        PAYLOAD,
        ("holds a pydantic secret", "asterisks"),
    ),
    "datetime in a broken zone": (
        one("a", {"b": datetime(2026, 1, 1, tzinfo=BrokenZone())}),
        PAYLOAD,
        ("at $.b is a datetime that can't be serialized",),
    ),
    "meta as a list": (one("a", {}, meta=[1]), PAYLOAD, ("meta must be a JSON object, got list",)),
    "meta as an empty list": (fluent(lambda draft: draft.meta([])), PAYLOAD, ("meta must be a JSON object, got list",)),
    "meta as text": (fluent(lambda draft: draft.meta("x")), PAYLOAD, ("meta must be a JSON object, got str",)),
    "meta of two kinds": (fluent(lambda draft: draft.meta(Login(), b=1)), PAYLOAD, ("a mapping beside b, got Login",)),
    "meta with NaN": (quick("a", meta={"b": math.nan}), PAYLOAD, (f"meta at $.b {NOT_FINITE}",)),
    "meta with NUL": (one("a", {}, meta={"b": "\x00"}), PAYLOAD, ("meta at $.b holds a NUL",)),
    "meta with an integer key": (
        fluent(lambda draft: draft.meta({1: 2})),
        PAYLOAD,
        ("meta at $ has a key that is int",),
    ),
    "meta in meta": (many(lambda draft: draft.meta(__meta=1)), PAYLOAD, ("meta has the reserved key '__meta'",)),
    "meta too deep": (one("a", {}, meta=nested(100)), PAYLOAD, ("meta at $", "nested deeper than 99 levels")),
    "payload and meta too large": (
        one("a", {"b": "x" * 600_000}, meta={"b": "x" * 600_000}),
        PAYLOAD,
        ("payload with rules and meta is larger than 1048576 bytes",),
    ),
}
INSTANTS: dict[str, Case] = {
    "naive": (one("a", end_at=datetime(2026, 1, 1)), INSTANT, ("2026-01-01T00:00:00 is naive", "datetime.now(UTC)")),  # noqa: DTZ001
    "naive in a zone without offset": (one("a", end_at=datetime(2026, 1, 1, tzinfo=NoZone())), INSTANT, ("is naive",)),
    "naive text": (quick("a", "2026-01-01T00:00:00"), INSTANT, ("is naive; give it a time zone",)),
    "date": (quick("a", date(2026, 1, 1)), INSTANT, ("end_at must be an aware datetime", "got date")),
    "time": (quick("a", time(1, tzinfo=UTC)), INSTANT, ("end_at must be an aware datetime", "got time")),
    "timestamp": (one("a", end_at=1_800_000_000.0), INSTANT, ("end_at must be an aware datetime", "got float")),
    "bool": (one("a", end_at=True), INSTANT, ("end_at must be an aware datetime", "got bool")),
    "bytes": (one("a", end_at=b"2026-01-01T00:00:00Z"), INSTANT, ("end_at must be an aware datetime", "got bytes")),
    "infinity": (fluent(lambda draft: draft.eligible_at("infinity")), INSTANT, ("end_at 'infinity' is no ISO 8601",)),
    "negative infinity": (one("a", end_at="-infinity"), INSTANT, ("'-infinity' is no ISO 8601 instant; write 2026-",)),
    "SQL's now": (quick("a", "now()"), INSTANT, ("end_at 'now()' is no ISO 8601 instant",)),
    "endless text": (one("a", end_at="2" * 10**6), INSTANT, ("is no ISO 8601 instant",)),
    "31 February": (one("a", end_at="2026-02-31T00:00:00Z"), INSTANT, ("'2026-02-31T00:00:00Z' is no ISO 8601",)),
    "year 10000": (one("a", end_at="10000-01-01T00:00:00Z"), INSTANT, ("is no ISO 8601 instant",)),
    "before Christ": (one("a", end_at="-0001-01-01T00:00:00Z"), INSTANT, ("is no ISO 8601 instant",)),
    "first day": (one("a", end_at=datetime.min.replace(tzinfo=UTC)), INSTANT, ("out of range", "from 0001-01-02")),
    "last day": (one("a", end_at=datetime.max.replace(tzinfo=UTC)), INSTANT, ("out of range", "to 9999-12-30")),
    "before the first day": (
        one("a", end_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
        INSTANT,
        ("is out of range; it must be from 0001-01-02",),
    ),
    "after the last day": (
        one("a", end_at=datetime.max.replace(tzinfo=ZoneInfo("America/New_York"))),
        INSTANT,
        ("is out of range",),
    ),
    "broken zone": (
        one("a", end_at=datetime(2026, 1, 1, tzinfo=BrokenZone())),
        INSTANT,
        ("BrokenZone that tells no offset (RuntimeError)", "use ZoneInfo or UTC"),
    ),
    "far zone": (one("a", end_at=datetime(2026, 1, 1, tzinfo=FarZone())), INSTANT, ("FarZone that tells no offset",)),
    "callable that is naive": (quick("a", lambda: datetime(2026, 1, 1)), INSTANT, ("is naive",)),  # noqa: DTZ001
    "callable of a callable": (one("a", end_at=lambda: len), INSTANT, ("must be an aware datetime", "got builtin_")),
    "negative end_at": (
        one("a", end_at=timedelta(microseconds=-1)),
        INSTANT,
        ("delay must be from zero to 36525 days",),
    ),
    "negative delay": (
        one("a", delay=timedelta(-1)),
        INSTANT,
        ("delay must be from zero", "pass end_at for an instant"),
    ),
    "delay of centuries": (one("a", delay=MAX_DELAY + timedelta.resolution), INSTANT, ("from zero to 36525 days",)),
    "delay for ever": (one("a", delay=timedelta.max), INSTANT, ("delay must be from zero to 36525 days",)),
    "delay as a number": (one("a", delay=60), INSTANT, ("delay must be a timedelta, got int", "timedelta(seconds=")),
    "delay as a bool": (one("a", delay=True), INSTANT, ("delay must be a timedelta, got bool",)),
    "delay as text": (one("a", delay="5m"), INSTANT, ("delay must be a timedelta, got str",)),
    "both": (
        one("a", end_at="2026-01-01T00:00:00Z", delay=timedelta(1)),
        INSTANT,
        ("both end_at and delay", "pass end_at"),
    ),
    "after a number": (fluent(lambda draft: draft.after(60)), INSTANT, ("delay must be a timedelta, got int",)),
    "after a bool": (fluent(lambda draft: draft.after(minutes=True)), INSTANT, ("after(minutes)", "got bool")),
    "after text": (many(lambda draft: draft.after(hours="1")), INSTANT, ("after(hours)", "must be a number, got str")),
    "after a Decimal": (
        fluent(lambda draft: draft.after(days=Decimal("sNaN"))),
        INSTANT,
        ("after(days)", "got Decimal"),
    ),
    "after NaN": (fluent(lambda draft: draft.after(seconds=math.nan)), INSTANT, ("after(seconds)", "finite numbers")),
    "after infinity": (many(lambda draft: draft.after(weeks=math.inf)), INSTANT, ("after(weeks)", "finite numbers")),
    "after 10**400": (
        fluent(lambda draft: draft.after(seconds=10**400)),
        INSTANT,
        ("after(seconds)", "finite numbers"),
    ),
    "after less than nothing": (
        fluent(lambda draft: draft.after(days=1, hours=-25)),
        INSTANT,
        ("delay must be from zero",),
    ),
}
KEYS: dict[str, Case] = {
    "empty": (quick("a", idempotency=""), KEY, ("idempotency_key must have 1 to 255 characters, got 0", "use a hash")),
    "256 characters": (many(lambda draft: draft.idempotency("x" * 256)), KEY, ("1 to 255 characters, got 256",)),
    "256 wide characters": (quick("a", idempotency="\U0001f600" * 256), KEY, ("1 to 255 characters, got 256",)),
    "256 combining characters": (one("a", idempotency_key="e\u0301" * 128), KEY, ("1 to 255 characters, got 256",)),
    "a megabyte": (one("a", idempotency_key="x" * 2**20), KEY, ("got 1048576; use a hash of what is longer",)),
    "NUL": (quick("a", idempotency="a\x00"), KEY, ("idempotency_key has a NUL or a lone surrogate", "remove it")),
    "lone surrogate": (many(lambda draft: draft.idempotency("\udcff")), KEY, ("a NUL or a lone surrogate",)),
    "integer": (fluent(lambda draft: draft.idempotency(7)), KEY, ("idempotency_key must be text, got int", "str(...)")),
    "bytes": (one("a", idempotency_key=b"k"), KEY, ("idempotency_key must be text, got bytes",)),
    "None": (fluent(lambda draft: draft.idempotency(None)), KEY, ("idempotency_key must be text, got NoneType",)),
    "ordering, empty": (
        fluent(lambda draft: draft.ordering_key("")),
        KEY,
        ("ordering_key must have 1 to 255", "got 0"),
    ),
    "ordering, 256": (one("a", ordering_key="\u20ac" * 256), KEY, ("ordering_key must have 1 to 255", "got 256")),
    "ordering, NUL": (many(lambda draft: draft.ordering_key("\x00")), KEY, ("ordering_key has a NUL",)),
    "ordering, surrogate": (one("a", ordering_key="\ud800"), KEY, ("ordering_key has a NUL or a lone surrogate",)),
    "ordering, tuple": (one("a", ordering_key=("user", 7)), KEY, ("ordering_key must be text, got tuple",)),
    "replace without one": (one("a", on_conflict="replace"), KEY, ("on_conflict='replace' needs an idempotency key",)),
    "raise without one": (
        many(lambda draft: draft.on_conflict("raise")),
        KEY,
        ("on_conflict='raise' needs", "set one"),
    ),
}
OTHERS: dict[str, Case] = {
    "policy unknown": (one("a", on_conflict="ignore"), ACTION, ("must be 'keep', 'replace' or 'raise', got 'ignore'",)),
    "policy in capitals": (one("a", on_conflict="KEEP"), ACTION, ("on_conflict must be 'keep'", "got 'KEEP'")),
    "policy as a bool": (fluent(lambda draft: draft.on_conflict(True)), ACTION, ("on_conflict must be", "got True")),
    "policy as a list": (one("a", on_conflict=["keep"]), ACTION, ("on_conflict must be", "got ['keep']")),
    "priority bool": (one("a", priority=True), ACTION, ("priority must be an integer, got bool",)),
    "priority float": (fluent(lambda draft: draft.priority(1.0)), ACTION, ("priority must be an integer, got float",)),
    "priority text": (one("a", priority="high"), ACTION, ("priority must be an integer, got str",)),
    "priority None": (one("a", priority=None), ACTION, ("priority must be an integer, got NoneType",)),
    "priority Decimal": (one("a", priority=Decimal(1)), ACTION, ("priority must be an integer, got Decimal",)),
    "priority 32768": (one("a", priority=2**15), ACTION, ("priority must be from -32768 to 32767",)),
    "priority -32769": (many(lambda draft: draft.priority(-(2**15) - 1)), ACTION, ("from -32768 to 32767",)),
    "priority enum": (one("a", priority=Numbers.TOO_MANY), ACTION, ("from -32768 to 32767",)),
    "priority endless": (one("a", priority=10**10_000), ACTION, ("priority must be from -32768 to 32767",)),
    "gate bool": (quick("a", when=True), ACTION, ("when takes a callable", "got bool", "lambda payload: ...")),
    "gate text": (quick("a", skip_if="x"), ACTION, ("skip_if takes a callable of the payload, got str",)),
    "no drafts": (
        lambda bind: publish_many(bind, None),
        ACTION,
        ("drafts must be an iterable", "got NoneType", "a list"),
    ),
    "one draft": (lambda bind: publish_many(bind, GOOD), ACTION, ("drafts must be an iterable of drafts, got Draft",)),
    "types for drafts": (many(lambda _: "email.welcome"), ACTION, ("expected a Draft, got str",)),
    "receipt for a draft": (many(lambda _: Receipt(id=1, outcome="kept")), ACTION, ("got Receipt", "without commit()")),
    "builder that forgets": (fluent(lambda _: None), ACTION, ("expected a Draft, got NoneType", "return the draft")),
    "draft for a builder": (
        lambda bind: Publisher(bind).publish(GOOD),
        ACTION,
        ("got Draft", "publish(lambda draft: ...)"),
    ),
    "draft of no publisher": (lambda _: GOOD.commit(), SETTING, ("came from no publisher", "pass it to publish_many")),
}
RULES_: dict[str, Case] = {
    "empty": (one("a", rules={}), RULES, ("rules must be one JSONLogic operation", "got 0 keys", "combine several")),
    "two operations": (one("a", rules={"!": [1], "!!": [1]}), RULES, ("got 2 keys", "combine several with 'and'")),
    "list": (quick("a", rules=[{"!": [1]}]), RULES, ("rules must be one JSONLogic operation", "got list")),
    "bool": (one("a", rules=True), RULES, ("rules must be one JSONLogic operation", "got bool")),
    "None": (fluent(lambda draft: draft.rules(None)), RULES, ("rules must be one JSONLogic operation", "got NoneType")),
    "unknown operator": (
        many(lambda draft: draft.rules({"bogus": 1})),
        RULES,
        ("unknown operator `bogus`", "jsonlogic.com"),
    ),
    "unknown operator within": (one("a", rules={"!": [{"eval": "1"}]}), RULES, ("unknown operator `eval`", "at /!")),
    "operator with escapes": (one("a", rules={"\x1b[31m": 1}), RULES, (r"unknown operator `\x1b[31m`",)),
    "too few arguments": (quick("a", rules={"==": [1]}), RULES, ("takes at least 2 arguments",)),
    "unknown variable": (one("a", rules={"var": "order"}), RULES, ("rules read 'order'", "write 'payload.order'")),
    "variable with escapes": (one("a", rules={"var": "a\n.b"}), RULES, (r"rules read 'a\n'", r"write 'payload.a\n.b'")),
    "numbered variable": (one("a", rules={"var": 1}), RULES, ("rules read '1'", "payload, meta, action, now, facts")),
    "NUL": (one("a", rules={"==": ["\x00", 1]}), RULES, ("rules at $['=='][0] holds a NUL",)),
    "surrogate": (one("a", rules={"==": ["\ud800", 1]}), RULES, ("rules at $['=='][0] holds a lone surrogate",)),
    "NaN": (quick("a", rules={"==": [math.nan, 1]}), RULES, (f"rules at $['=='][0] {NOT_FINITE}",)),
    "641 digits": (one("a", rules={"==": [1, 10**640]}), RULES, ("an integer of more than 640 digits",)),
    "bytes": (one("a", rules={"==": [b"a", 1]}), RULES, ("rules at $['=='][0] is bytes",)),
    "integer key": (one("a", rules={1: 1}), RULES, ("rules at $ has a key that is int",)),
    "too large": (one("a", rules={"in": ["x", "x" * 2**14]}), RULES, ("rules is larger than 16384 bytes",)),
    "too deep": (many(lambda draft: draft.rules(negated(65))), RULES, ("nested deeper than 64 levels",)),
    "mapping that raises": (one("a", rules=Unreadable()), RULES, ("rules at $ is a Unreadable", "(KeyError)")),
}
PLACES: dict[str, Case] = {
    "table empty": (one("a", table=""), SETTING, ("table name must be 1 to 40 bytes", "got ''")),
    "table empty, quick": (quick("a", table=""), SETTING, ("table name must be 1 to 40 bytes", "got ''")),
    "table too long": (fluent(lambda draft: draft.table("x" * 41)), SETTING, ("table name must be 1 to 40 bytes",)),
    "table too long in bytes": (one("a", table="\u20ac" * 14), SETTING, ("table name must be 1 to 40 bytes",)),
    "table with NUL": (many(lambda draft: draft.table("a\x00")), SETTING, ("printable characters", r"got 'a\x00'")),
    "table with a newline": (one("a", table="a\nb"), SETTING, ("printable characters", r"got 'a\nb'")),
    "table with a surrogate": (one("a", table="\ud800"), SETTING, ("printable characters", r"got '\ud800'")),
    "table with a percent sign": (one("a", table="a%s"), SETTING, ("printable characters without %", "got 'a%s'")),
    "table without a name": (one("a", table="public."), SETTING, ("table name must be 1 to 40 bytes", "got ''")),
    "schema without a name": (one("a", table=".action_logs"), SETTING, ("schema name must be 1 to 63 bytes", "got ''")),
    "schema with NUL": (one("a", table="a\x00.b"), SETTING, ("schema name must be", r"got 'a\x00'")),
    "schema too long": (one("a", table="s" * 64 + ".t"), SETTING, ("schema name must be 1 to 63 bytes",)),
    "table as a number": (
        fluent(lambda draft: draft.table(7)),
        SETTING,
        ("table must be the name", "got int", "write"),
    ),
    "table as bytes": (one("a", table=b"action_logs"), SETTING, ("table must be the name of a table, got bytes",)),
    "table as a Table": (quick("a", table=Table("a", MetaData())), SETTING, ("name of a table, got Table",)),
    "publisher's table": (lambda bind: Publisher(bind, table=7).draft("a"), SETTING, ("name of a table, got int",)),
    "bind a number": (lambda _: publish(7, "a"), SETTING, ("Engine, Connection, Session, URL or None, got int",)),
    "bind a URL object": (lambda bind: publish(bind.url, "a"), SETTING, ("URL or None, got URL",)),
    "bind a path": (lambda _: publish(Path("a.db"), "a"), SETTING, ("URL or None, got PosixPath",)),
    "bind a class": (lambda _: publish(Session, "a"), SETTING, ("URL or None, got type",)),
    "bind a factory": (lambda bind: publish_many(sessionmaker(bind), [GOOD]), SETTING, ("got sessionmaker",)),
    "URL empty": (at(""), SETTING, ("URL can't be read", "write postgresql://user:password@host/database")),
    "URL of nothing": (at("action_logs"), SETTING, ("URL can't be read",)),
    "URL with a bad port": (at(f"postgresql://me:{SECRET}@host:port/a"), SETTING, ("URL can't be read",)),
    "URL with NUL": (at("sqlite:///a\x00b"), SETTING, ("URL can't be read",)),
    "URL of another database": (
        at(f"mysql://me:{SECRET}@host/a"),
        SETTING,
        ("'mysql' is not supported", "use PostgreSQL"),
    ),
    "URL of another driver": (
        at(f"postgresql+none://me:{SECRET}@host/a"),
        SETTING,
        ("'postgresql+none' is not installed",),
    ),
    "URL of an asyncio driver": (at("sqlite+aiosqlite:///a.db"), SETTING, ("is for asyncio", "run_sync(publish, ...)")),
    "URL with a bad option": (at("sqlite:///a.db?timeout=soon"), SETTING, ("has a wrong value", "question mark")),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in [
        *(("type", TYPES), ("payload", PAYLOADS), ("instant", INSTANTS), ("key", KEYS)),
        *(("draft", OTHERS), ("rules", RULES_), ("place", PLACES)),
    ]
    for name, case in cases.items()
}


@pytest.fixture(scope="module", params=DATABASES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Callable[[], Path]
) -> Iterator[Engine]:
    """One database for the whole table: what is refused leaves nothing behind."""
    if request.param == "sqlite":
        file = shutil.copy(sqlite_template(), tmp_path_factory.mktemp("bad-input") / "a.db")
        engine = engines.create(f"sqlite:///{file}")
        yield engine
        engine.dispose()
        return
    with postgres.fresh_database(shared_postgres(request.param), prepare=MIGRATE) as url:
        engine = engines.create(url)
        yield engine
        engine.dispose()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_any_sql(engine: Engine, name: str) -> None:
    """What, which, got and the remedy: whoever reads it in a log must know what to change, and see no secret."""
    act, error, words = CASES[name]

    with statements_of(engine) as sent, pytest.raises(ClaimDispatchError) as refused:
        act(engine)

    message = str(refused.value)
    assert type(refused.value) is error
    assert [word for word in words if word not in message] == []
    assert message.isprintable()
    assert SECRET not in message
    assert len(message) < 1_000
    assert len(traceback.extract_tb(refused.value.__traceback__)) < 30  # what pickles tracebacks as well can pickle it
    assert str(pickle.loads(pickle.dumps(refused.value))) == message
    assert sent == []
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(TABLE)).scalar_one() == 0


@pytest.mark.parametrize(("text", "stored"), [(Colour.RED, "red"), (Shifting("red"), "red")])
def test_text_is_stored_as_it_was_checked(engine: Engine, text: str, stored: str) -> None:
    """An enum of text prints as its own name: the check must not pass one text, and the table hold another."""
    with engine.connect() as connection:
        publish(connection, text, {text: text}, idempotency_key=text, ordering_key=text)
        columns = TABLE.c.type, TABLE.c.payload, TABLE.c.idempotency_key, TABLE.c.ordering_key
        row = connection.execute(select(*columns)).one()
        connection.rollback()

    assert tuple(row) == (stored, {stored: stored}, stored, stored)


def test_the_table_is_as_long_as_promised() -> None:
    """A hundred and more, and none of them said twice."""
    assert len(CASES) >= 100
