"""Payloads: what goes in reads back equal, and what can't be stored is refused with its place and never its value."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr, computed_field, field_serializer
from pydantic.dataclasses import dataclass as pydantic_dataclass

from prefect_claim_dispatch.encoding import MAX_DEPTH, MAX_INTEGER_DIGITS, Limits, Writer, encode
from prefect_claim_dispatch.errors import InvalidPayloadError
from prefect_claim_dispatch.payloads import assemble, encode_meta, encode_payload

SECRET = "hunter2"
MEBIBYTE = 1024 * 1024


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Span(Enum):
    DAY = timedelta(days=1)


class Welcome(TypedDict):
    email: str
    user_id: int


@dataclass
class Line:
    item: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    id: UUID
    lines: list[Line]


class Point(NamedTuple):
    x: int
    y: int


class Account(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    account_id: int = Field(alias="accountId")
    opened_at: datetime
    balance: Decimal = Decimal("1.50")

    @computed_field
    def label(self) -> str:
        return f"#{self.account_id}"


@pydantic_dataclass
class Parcel:
    weight: Decimal


class Login(BaseModel):
    user: str
    password: SecretStr


class Blob(BaseModel):
    data: bytes


class Hostile(BaseModel):
    value: int

    @field_serializer("value")
    def explode(self, value: int) -> int:
        raise ValueError(SECRET)


def encoded(payload: Any, max_bytes: int = MEBIBYTE) -> Any:
    return json.loads(encode_payload(payload, max_bytes=max_bytes))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({}, {}),
        ({"a": None, "b": True, "c": False}, {"a": None, "b": True, "c": False}),
        ({"text": 'é "quoted" \\ \n \u2028 \U0001f600'}, {"text": 'é "quoted" \\ \n \u2028 \U0001f600'}),
        ({"text": "\\u0000 as six characters"}, {"text": "\\u0000 as six characters"}),
        ({"": "the empty key"}, {"": "the empty key"}),
        ({"n": 2**63, "m": -(10**600)}, {"n": 2**63, "m": -(10**600)}),
        ({"f": 0.1, "tiny": 5e-324}, {"f": 0.1, "tiny": 5e-324}),
        ({"big": 1e23, "huge": 1.7e308}, {"big": 1e23, "huge": 1.7e308}),
        ({"list": [1, [2, (3, ())]]}, {"list": [1, [2, [3, []]]]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": UserDict({"b": 1})}), {"a": {"b": 1}}),
        ({"at": datetime(2026, 1, 31, 12, tzinfo=UTC)}, {"at": "2026-01-31T12:00:00Z"}),
        ({"at": datetime(2026, 1, 31, 12)}, {"at": "2026-01-31T12:00:00"}),  # noqa: DTZ001
        ({"on": date(2026, 1, 31), "time": time(1, 2)}, {"on": "2026-01-31", "time": "01:02:00"}),
        ({"for": timedelta(minutes=5)}, {"for": "PT5M"}),
        ({"id": UUID(int=7)}, {"id": "00000000-0000-0000-0000-000000000007"}),
        ({"price": Decimal("1.50")}, {"price": "1.50"}),
        ({Colour.RED: [Colour.RED, Level.HIGH, Span.DAY]}, {"red": ["red", 3, "P1D"]}),
        ({"point": Point(1, 2)}, {"point": [1, 2]}),
        (Welcome(email="a@example.com", user_id=7), {"email": "a@example.com", "user_id": 7}),
        (
            Order(id=UUID(int=1), lines=[Line("tea", Decimal(3))]),
            {"id": "00000000-0000-0000-0000-000000000001", "lines": [{"item": "tea", "price": "3"}]},
        ),
        (
            Account(accountId=1, opened_at=datetime(2026, 1, 1, tzinfo=UTC)),
            {"accountId": 1, "opened_at": "2026-01-01T00:00:00Z", "balance": "1.50"},
        ),
        ({"nested": RootModel[list[int]]([1, 2])}, {"nested": [1, 2]}),
        (Parcel(weight=Decimal("2.5")), {"weight": "2.5"}),
        (Blob(data=b"text"), {"data": "text"}),
        ({"stars": "**********"}, {"stars": "**********"}),
    ],
)
def test_payload_is_stored_as_documented(given: Any, stored: Any) -> None:
    """The table in the module's docstring is a promise to publishers and to processors in any language."""
    assert encoded(given) == stored


def test_a_model_reads_back_as_itself() -> None:
    """A processor validates the payload with the publisher's own model: no alias or computed field may stop it."""
    account = Account(accountId=1, opened_at=datetime(2026, 1, 1, tzinfo=UTC))

    stored = encode_payload(account, max_bytes=MEBIBYTE)

    assert Account.model_validate_json(stored) == account


cyclic: dict[str, Any] = {"a": []}
cyclic["a"].append(cyclic)
cyclic_list: list[Any] = []
cyclic_list.append(cyclic_list)


def nested(levels: int) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(levels - 1):
        payload = {"a": payload}
    return payload


def bomb() -> dict[str, Any]:
    """A few hundred objects that stand for 10 to the power of 60 values."""
    value: Any = [SECRET]
    for _ in range(60):
        value = [value] * 10
    return {"a": value}


REFUSED = [
    (None, "must be a JSON object, got NoneType; pass a mapping"),
    ([SECRET], "must be a JSON object, got list"),
    (SECRET, "must be a JSON object, got str"),
    (7, "must be a JSON object, got int"),
    (Account, "must be a JSON object, got ModelMetaclass"),
    (RootModel[list[int]]([1]), "must be a JSON object, got RootModel[list[int]]"),
    ({"__rules": SECRET}, "has the reserved key '__rules'; pass rules=... instead"),
    ({"__meta": {}}, "has the reserved key '__meta'; pass meta=... instead"),
    ({"a": math.nan}, "at $.a is NaN or infinite, which JSON has not; pass None or text"),
    ({"a": [0, math.inf]}, "at $.a[1] is NaN or infinite"),
    ({"a": -math.inf}, "at $.a is NaN or infinite"),
    ({"a": Decimal("NaN")}, "at $.a is NaN or infinite"),
    ({"a": Decimal("sNaN")}, "at $.a is NaN or infinite"),
    ({"a": Decimal("-Infinity")}, "at $.a is NaN or infinite"),
    ({"a": {"b c": SECRET + "\x00"}}, "at $.a['b c'] holds a NUL character; remove it"),
    ({"a": SECRET + "\ud800"}, "at $.a holds a lone surrogate; decode the text with errors='replace'"),
    ({"a": "\udcff"}, "at $.a holds a lone surrogate"),
    ({"a\x00": 1}, "at $ has a key with a NUL character"),
    ({"a": {"\ud800": 1}}, "at $.a has a key with a lone surrogate"),
    ({"a": 10**MAX_INTEGER_DIGITS}, "at $.a is an integer of more than 640 digits; pass it as text"),
    ({"a": -(10**10_000)}, "at $.a is an integer of more than 640 digits"),
    ({1: "a"}, "at $ has a key that is int, not text; write str(key)"),
    ({"a": {None: 1}}, "at $.a has a key that is NoneType, not text"),
    ({"a": [{(1, 2): 1}]}, "at $.a[0] has a key that is tuple, not text"),
    ({True: 1}, "at $ has a key that is bool, not text"),
    ({b"a": 1}, "at $ has a key that is bytes, not text"),
    ({Level.HIGH: 1}, "at $ has a key that is int, not text"),
    ({"a": SECRET.encode()}, "at $.a is bytes, which JSON has not; pass base64 text"),
    ({"a": bytearray(b"x")}, "at $.a is bytes"),
    ({"a": memoryview(b"x")}, "at $.a is bytes"),
    ({"a": {SECRET}}, "at $.a is a set, which JSON has not; pass sorted(...)"),
    ({"a": frozenset()}, "at $.a is a set"),
    ({"a": SecretStr(SECRET)}, "at $.a is a secret, and payloads are stored in plain text; pass a reference to it"),
    ({"a": Account}, "at $.a is a class; pass an instance"),
    ({"a": object()}, "at $.a is a object, which has no JSON form here"),
    ({"a": 1j}, "at $.a is a complex, which has no JSON form here"),
    ({"a": lambda: SECRET}, "at $.a is a function"),
    ({"a": (number for number in ())}, "at $.a is a generator"),
    (Login(user="me", password=SecretStr(SECRET)), "holds a pydantic secret, which would be stored as asterisks"),
    ({"a": [Login(user="me", password=SecretStr(SECRET))]}, "holds a pydantic secret"),
    (Blob(data=b"\xff"), "at $ is a Blob that can't be serialized (UnicodeDecodeError)"),
    (Hostile(value=1), "at $ is a Hostile that can't be serialized (PydanticSerializationError)"),
    (
        Account.model_construct(accountId=SECRET, opened_at=SECRET),
        "at $ is a Account that can't be serialized (PydanticSerializationError)",
    ),
    (cyclic, "at $.a[0] contains itself; pass a copy without the cycle"),
    ({"a": cyclic_list}, "at $.a[0] contains itself"),
    (nested(MAX_DEPTH + 1), "is nested deeper than 100 levels; flatten it, or pass a reference"),
    (nested(5_000), "is nested deeper than 100 levels"),
    ({"a": "x" * MEBIBYTE}, "payload is larger than 1048576 bytes of JSON; store the data elsewhere"),
    ({"a": "é" * (MEBIBYTE // 2)}, "is larger than 1048576 bytes"),
    ({"a": Decimal("0." + "1" * MEBIBYTE)}, "is larger than 1048576 bytes"),
    ({"a": [None] * MEBIBYTE}, "is larger than 1048576 bytes"),
    ({"a": ["x" * 1_000_000] * 1_000_000}, "is larger than 1048576 bytes"),
    (bomb(), "is larger than 1048576 bytes"),
    ({"a": ({"b": SECRET.encode()},)}, "at $.a[0].b is bytes"),
    ({"k" * 100: b""}, "at $['" + "k" * 40 + "'] is bytes"),
    ({"a\n'b": b""}, "is bytes"),
]


@pytest.mark.parametrize(("payload", "told"), REFUSED)
def test_payload_that_no_database_holds_is_refused(payload: Any, told: str) -> None:
    """The message says what, where and the remedy; a value in it would be in somebody's logs."""
    with pytest.raises(InvalidPayloadError) as refused:
        encode_payload(payload, max_bytes=MEBIBYTE)

    assert told in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert str(refused.value).isprintable()


def test_a_hundred_levels_are_allowed() -> None:
    """The limit is the documented one, not one less."""
    assert encoded(nested(MAX_DEPTH)) == nested(MAX_DEPTH)


def test_size_is_counted_in_bytes_and_to_the_byte() -> None:
    """Characters are not bytes: what is allowed must fit, and one byte more must not."""
    assert encoded({"a": "é"}, max_bytes=10) == {"a": "é"}
    with pytest.raises(InvalidPayloadError, match="larger than 9 bytes"):
        encode_payload({"a": "é"}, max_bytes=9)


def test_rules_and_meta_stand_under_their_reserved_keys() -> None:
    """What the claim takes out again must be what was put in, whatever of the three is empty."""
    for payload in ("{}", '{"a":1}'):
        for rules in (None, '{"!":[1]}'):
            for meta in (None, '{"source":"signup"}'):
                document = json.loads(assemble(payload, rules=rules, meta=meta, max_bytes=100))

                assert document.pop("__rules", None) == (rules and json.loads(rules))
                assert document.pop("__meta", None) == (meta and json.loads(meta))
                assert document == json.loads(payload)


def test_rules_and_meta_count_towards_the_size() -> None:
    """The limit is on what is stored; two halves that fit alone must not pass together."""
    with pytest.raises(InvalidPayloadError, match="payload with rules and meta is larger than 40 bytes"):
        assemble('{"a":"xxxxxxxxxxxx"}', rules=None, meta='{"b":"xxxxxxxxxxxx"}', max_bytes=40)


def test_meta_is_refused_by_its_own_name() -> None:
    """Whoever passed meta must not look for the mistake in the payload."""
    with pytest.raises(InvalidPayloadError, match=r"^meta at \$\.a is bytes"):
        encode_meta({"a": b""}, max_bytes=100)


def test_meta_may_not_push_the_payload_over_its_depth() -> None:
    """Meta stands one level down in the payload, which has a hundred levels together with it."""
    assert encode_meta(nested(MAX_DEPTH - 1), max_bytes=MEBIBYTE)
    with pytest.raises(InvalidPayloadError, match="deeper than 99 levels"):
        encode_meta(nested(MAX_DEPTH), max_bytes=MEBIBYTE)


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
documents = st.dictionaries(
    texts.filter(lambda key: key not in {"__rules", "__meta"}),
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=10),
)


@given(documents)
def test_what_goes_in_reads_back_equal(document: dict[str, Any]) -> None:
    """For any JSON: nothing is rounded, reordered away, or turned from a float into an integer."""
    stored = json.loads(encode_payload(document, max_bytes=MEBIBYTE))

    assert stored == document
    assert repr(stored) == repr(document)


@given(documents)
def test_the_quick_way_and_the_thorough_way_agree(document: dict[str, Any]) -> None:
    """Plain JSON skips the writer; if the two differed, a payload's text would depend on what stands beside it."""
    limits = Limits(max_bytes=MEBIBYTE)
    writer = Writer(limits)
    writer.write(document)

    assert json.loads("".join(writer.pieces)) == json.loads(encode(document, limits))
