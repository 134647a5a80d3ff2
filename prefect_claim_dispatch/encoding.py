"""Python values as JSON text that SQLite and PostgreSQL hold alike, or a refusal that says where.

:mod:`.payloads` has the rules. What is JSON already is recognised by a quick look and written by pydantic's encoder.
All else goes through `Writer`, which knows more types, and at which path it stands when it must refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn, cast
from uuid import UUID

from pydantic import Secret, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from prefect_claim_dispatch.errors import InvalidActionError, InvalidPayloadError

MAX_DEPTH: Final = 100
# What every Python reads back, however low its sys.set_int_max_str_digits.
MAX_INTEGER_DIGITS: Final = 640

_INTEGER_BOUND: Final = 10**MAX_INTEGER_DIGITS
_SMALL_INTEGER: Final = 2**63
# From here on repr() writes an exponent, which jsonb would read back as an integer.
_PLAIN_FLOAT: Final = 1e16
_MAX_STEP: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is encoded, by name, how much of it is allowed, and the error that refuses it."""

    what: str = "payload"
    max_bytes: int
    max_depth: int = MAX_DEPTH
    error: type[InvalidActionError] = InvalidPayloadError


def encode(value: object, limits: Limits) -> str:
    """Any JSON *value* as text, of an object, array or scalar.

    Raises:
        InvalidActionError: `limits.error`, when it can't be stored as it is.
    """
    is_plain = _left_after(value, limits.max_depth, limits.max_bytes) >= 0
    if is_plain and (text := _encode_plain(value, limits)) is not None:
        return text
    writer = Writer(limits)
    try:
        writer.write(value)
    except limits.error as refused:
        # The way down a hundred levels tells nothing, and those who pickle tracebacks (Dask does) could not pickle it.
        raise refused.with_traceback(None) from refused.__cause__
    text = "".join(writer.pieces)
    if len(text.encode()) > limits.max_bytes:
        raise limits.error(too_large(limits.what, limits.max_bytes))
    return text


def _left_after(value: Any, depth: int, left: int) -> int:
    """What *value* leaves of the bytes *left*, if it is an object or array of JSON already and needs no rewriting.

    Negative when it is something else, when in doubt, and when it is too large, all of which the writer tells apart. A
    small structure that refers to itself many times over can stand for more text than fits into memory.
    """
    kind = type(cast("object", value))
    if depth == 0 or (kind is not dict and kind is not list):
        return -1
    left -= len(value)
    members: Iterable[Any] = value
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return -1
            left -= len(key)
        members = value.values()
    # One loop without calls for what is no container: every payload comes through here.
    for member, kind in zip(members, map(type, members), strict=True):
        if kind is str:
            left -= len(member)
        elif kind is dict or kind is list:
            left = _left_after(member, depth - 1, left)
            if left < 0:
                return left
        elif not _is_plain_scalar(member, kind):
            return -1
    return left


def _is_plain_scalar(value: Any, kind: type[Any]) -> bool:
    if kind is int:
        return -_SMALL_INTEGER < value < _SMALL_INTEGER
    if kind is float:
        return -_PLAIN_FLOAT < value < _PLAIN_FLOAT
    return value is None or kind is bool


def _encode_plain(value: object, limits: Limits) -> str | None:
    """The text of a plain *value*; None when something in it must be refused, which is the writer's to explain."""
    try:
        raw = to_json(value)
    except PydanticSerializationError:
        return None
    return None if b"\\u0000" in raw or len(raw) > limits.max_bytes else raw.decode()


def too_large(what: str, max_bytes: int) -> str:
    """The message that refuses more than *max_bytes*."""
    return (
        f"{what} is larger than {max_bytes} bytes of JSON; store the data elsewhere and pass its key, "
        "or raise CLAIM_DISPATCH_MAX_PAYLOAD_BYTES"
    )


class Writer:
    """Writes JSON piece by piece, and knows where it is when something must be refused."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pieces: list[str] = []
        self._left = limits.max_bytes
        self._path: list[str] = []
        self._open: set[int] = set()

    def write(self, value: Any) -> None:
        """Append *value* to `pieces`."""
        match value:
            case None | True | False:
                self._put("null" if value is None else str(value).lower())
            case Enum():
                self.write(value.value)
            case str():
                self._put(self._text(value, "holds"))
            case int():
                self._put(self._integer(value))
            case float():
                self._put(self._float(value))
            case datetime() | date() | time() | timedelta() | UUID() | Decimal():
                self._put(encode_basestring(self._leaf(value)))
            case Secret() | SecretStr() | SecretBytes():
                self._refuse("is a secret, and payloads are stored in plain text", "pass a reference to it")
            case list() | tuple():
                self._array(cast("Sequence[Any]", value))
            case _:
                self._write_other(value)

    def shallow(self, value: Any) -> Any:
        """A model or dataclass instance as what it stands for in JSON; anything else as it is."""
        if isinstance(value, type | Mapping):
            return cast("Any", value)
        if hasattr(cast("object", type(value)), "__pydantic_serializer__"):
            return self._opened(value, _dumped)
        return self._opened(value, _fields) if is_dataclass(value) else value

    def _write_other(self, value: Any) -> None:
        shallow = self.shallow(value)
        if isinstance(shallow, Mapping):
            self._object(cast("Mapping[Any, Any]", shallow), value)
        elif shallow is not value:
            self.write(shallow)
        else:
            self._refuse_kind(value)

    def _array(self, items: Sequence[Any]) -> None:
        self._enter(items)
        self._put("[")
        for position, item in enumerate(items):
            self._put("," if position else "")
            self._member(position, item)
        self._put("]")
        self._open.remove(id(items))

    def _object(self, members: Mapping[Any, Any], identity: object) -> None:
        self._enter(identity)
        self._put("{")
        names: set[str] = set()
        for position, (key, item) in enumerate(self._opened(members, self._members)):
            name = self._name(key)
            if name in names:
                self._refuse(f"has the key {name[:_MAX_STEP]!a} twice", "keep one of them")
            names.add(name)
            self._put(f"{',' if position else ''}{self._text(name, 'has a key with')}:")
            self._member(name, item)
        self._put("}")
        self._open.remove(id(identity))

    def _enter(self, identity: object) -> None:
        if id(identity) in self._open:
            self._refuse("contains itself", "pass a copy without the cycle")
        if len(self._open) == self.limits.max_depth:
            deepest = self.limits.max_depth
            self._refuse(f"is nested deeper than {deepest} levels", "flatten it, or pass a reference")
        self._open.add(id(identity))

    def _name(self, key: Any) -> str:
        key = key.value if isinstance(key, Enum) else key
        if not isinstance(key, str):
            self._refuse(f"has a key that is {type(key).__name__}, not text", "write str(key)")
        return str.__str__(key)

    def _member(self, key: str | int, value: Any) -> None:
        self._path.append(_step(key))
        self.write(value)
        self._path.pop()

    def _put(self, piece: str) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise self.limits.error(too_large(self.limits.what, self.limits.max_bytes))
        self.pieces.append(piece)

    def _text(self, value: str, holds: str) -> str:
        if "\x00" in value:
            self._refuse(f"{holds} a NUL character", "remove it: PostgreSQL can't store it")
        try:
            value.encode()
        except UnicodeEncodeError:
            self._refuse(f"{holds} a lone surrogate", "decode the text with errors='replace'")
        return encode_basestring(value)

    def _integer(self, value: int) -> str:
        if abs(value) >= _INTEGER_BOUND:
            self._refuse(f"is an integer of more than {MAX_INTEGER_DIGITS} digits", "pass it as text")
        return int.__repr__(value)

    def _float(self, value: float) -> str:
        if not math.isfinite(value):
            self._refuse("is NaN or infinite, which JSON has not", "pass None or text")
        # Digits and ".0": jsonb would turn 1e+23 into an integer that is not equal to it.
        return f"{Decimal(repr(float(value))):f}.0" if abs(value) >= _PLAIN_FLOAT else float.__repr__(value)

    def _leaf(self, value: Any) -> str:
        if isinstance(value, Decimal) and not value.is_finite():
            self._refuse("is NaN or infinite, which JSON has not", "pass None or text")
        return cast("str", self._opened(value, to_jsonable_python))

    def _members(self, mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        # One that never ends must not fill the memory before it is too large.
        return list(islice(mapping.items(), self._left + 1))

    def _opened(self, value: Any, look: Callable[[Any], Any]) -> Any:
        try:
            return look(value)
        except Exception as error:  # noqa: BLE001 - an author's serializer, mapping or property may raise anything
            reason = type(error).__name__
        # Not chained: what pydantic raises here shows the value.
        kind = type(value).__name__
        return self._refuse(
            f"is a {kind} that can't be serialized ({reason})", "make it one that its own class validates"
        )

    def _refuse_kind(self, value: Any) -> NoReturn:
        match value:
            case bytes() | bytearray() | memoryview():
                self._refuse("is bytes, which JSON has not", "pass base64 text, or a reference to where the bytes are")
            case set() | frozenset():
                self._refuse("is a set, which JSON has not", "pass sorted(...)")
            case type():
                self._refuse("is a class", "pass an instance")
            case _:
                kind = type(value).__name__
                self._refuse(
                    f"is a {kind}, which has no JSON form here",
                    "convert it to text, numbers, lists or mappings",
                )

    def _refuse(self, problem: str, remedy: str) -> NoReturn:
        where = "".join(["$", *self._path])
        msg = f"{self.limits.what} at {where} {problem}; {remedy}"
        raise self.limits.error(msg)


def _dumped(model: Any) -> Any:
    return model.__pydantic_serializer__.to_python(model, mode="json", by_alias=True, round_trip=True, warnings="error")


def _fields(instance: Any) -> dict[str, Any]:
    return {item.name: getattr(instance, item.name) for item in fields(instance)}


def _step(key: str | int) -> str:
    """One step of a JSON path, printable and short, whatever the key holds."""
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if key.isidentifier() and len(key) <= _MAX_STEP else f"[{key[:_MAX_STEP]!a}]"
