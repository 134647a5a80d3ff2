"""Payloads as JSON text that SQLite and PostgreSQL hold alike, and that reads back equal; or a refusal, before any SQL.

How Python values are written:

==========================================  ============================================================
``str int float bool None list tuple``      as JSON has them
``Mapping``, dataclass, TypedDict           object; keys must be text
pydantic model or dataclass                 as its own JSON mode says, by alias, without computed fields
``datetime``, ``date``, ``time``            ISO 8601 text; UTC as ``Z``, a naive one without an offset
``timedelta``                               ISO 8601 duration: ``PT5M``
``UUID``, ``Decimal``                       text, so that no digit is lost
``Enum``                                    its value
``bytes``, sets, secrets, everything else   refused, with advice
==========================================  ============================================================

Refused too: NaN and infinities, NUL and lone surrogates in text or keys (`jsonb` takes neither), integers of more than
`MAX_INTEGER_DIGITS`, more than `MAX_DEPTH` levels, more bytes than allowed, values that contain themselves, and the
reserved keys. A refusal says where, by a JSON path. It never shows a value: more people see errors than payloads.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Final, Protocol, cast, get_args

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from prefect_claim_dispatch.actions import RESERVED_META, RESERVED_RULES
from prefect_claim_dispatch.encoding import (
    MAX_DEPTH,
    MAX_INTEGER_DIGITS,
    Limits,
    Writer,
    encode,
    too_large,
)
from prefect_claim_dispatch.errors import InvalidPayloadError

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER_DIGITS",
    "Payload",
    "assemble",
    "encode_meta",
    "encode_payload",
    "has_functions",
    "problems",
    "validated",
]

MAX_PROBLEMS: Final = 5

_MAX_STEP: Final = 40
# Of these pydantic says what was expected; an author's own errors may quote the value in any words.
_CALLED_BY_NAME: Final = ("post_init", "custom_init")
_NOT_CALLED: Final = frozenset(("cls", "metadata", "serialization", "schema_ref", "ref"))
_PLAIN_PROBLEMS: Final = frozenset(get_args(ErrorType)) - {"value_error", "assertion_error"}
_QUOTING: Final = frozenset({"error", "encoding_error", "tz_actual"})
_MASK: Final = '"**********"'
_RESERVED_START: Final = '"__'
_RESERVED_REMEDY: Final = {RESERVED_RULES: "pass rules=...", RESERVED_META: "pass meta=..."}


class DataclassInstance(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Payload = Mapping[str, Any] | BaseModel | DataclassInstance


def encode_payload(payload: Payload, *, max_bytes: int) -> str:
    """*payload* as the text of a JSON object.

    Raises:
        InvalidPayloadError: it is no object that both databases hold, or is larger than *max_bytes* in UTF-8.
    """
    return _encode_object(payload, _limits("payload", max_bytes, MAX_DEPTH))


def encode_meta(meta: Payload, *, max_bytes: int) -> str:
    """*meta* as the text of a JSON object, which will stand one level down in the payload.

    Raises:
        InvalidPayloadError: as `encode_payload`.
    """
    return _encode_object(meta, _limits("meta", max_bytes, MAX_DEPTH - 1))


def assemble(payload: str, *, rules: str | None, meta: str | None, max_bytes: int) -> str:
    """The document that is stored: the encoded *payload* with rules and meta under their reserved keys.

    Raises:
        InvalidPayloadError: the whole is larger than *max_bytes*.
    """
    extras = ((RESERVED_RULES, rules), (RESERVED_META, meta))
    members = [payload[1:-1], *(f'"{key}":{text}' for key, text in extras if text is not None)]
    document = "{" + ",".join(member for member in members if member) + "}"
    # Bytes are at least as many as characters, so only in between must they be counted.
    if len(document) * 4 > max_bytes and len(document.encode()) > max_bytes:
        raise InvalidPayloadError(too_large("payload with rules and meta", max_bytes))
    return document


def validated(adapter: TypeAdapter[Any], payload: Mapping[str, Any]) -> Any:
    """The stored *payload* as what *adapter* makes of it.

    Read as the JSON that it is: strict models then take text for an instant, and a union finds the one it was.

    Raises:
        pydantic.ValidationError: it does not fit.
    """
    return adapter.validate_json(json.dumps(dict(payload)))


@lru_cache(maxsize=1024)
def has_functions(adapter: TypeAdapter[Any]) -> bool:
    """Whether *adapter* calls functions that are not pydantic's own: those may take any time.

    In doubt, it does.
    """
    try:
        return _has_functions(adapter.core_schema)
    except Exception:  # noqa: BLE001 - a schema that is not built yet, or of a version that builds others
        return True


def _has_functions(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        parts = cast("Mapping[str, Any]", schema)
        if any(parts.get(key) for key in _CALLED_BY_NAME):
            return True
        return any(_has_functions(part) for key, part in parts.items() if key not in _NOT_CALLED)
    if isinstance(schema, list | tuple):
        return any(map(_has_functions, cast("Iterable[Any]", schema)))
    return callable(schema) and not _is_quick(schema)


def _is_quick(function: Callable[..., Any]) -> bool:
    room = str(getattr(function, "__module__", "")).partition(".")[0]
    if room in ("pydantic", "pydantic_core"):
        return True
    return isinstance(function, type) and room in sys.stdlib_module_names


def problems(error: ValidationError) -> str:
    """Where a payload does not fit and why, of at most `MAX_PROBLEMS` places.

    Without its values, since errors are shown to more people than payloads.
    """
    told = [f"{_place(problem)}: {_reason(problem)}" for problem in error.errors(include_url=False)]
    more = f" (and {len(told) - MAX_PROBLEMS} more)" if len(told) > MAX_PROBLEMS else ""
    return "; ".join(told[:MAX_PROBLEMS]) + more


def _place(problem: ErrorDetails) -> str:
    steps = (str(part)[:_MAX_STEP] for part in problem["loc"])
    return ".".join(step if step.isprintable() else ascii(step) for step in steps) or "payload"


def _reason(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "union_tag_invalid":
        return f"{context['discriminator']} should be one of {context['expected_tags']}"
    if kind not in _PLAIN_PROBLEMS:
        return f"refused by a validator ({kind})"
    # The rest quotes the value: Input should be a valid UUID, invalid character: found `s` at 0
    return re.split("[,:]", problem["msg"])[0] if _QUOTING & context.keys() else problem["msg"]


@cache
def _limits(what: str, max_bytes: int, max_depth: int) -> Limits:
    return Limits(what=what, max_bytes=max_bytes, max_depth=max_depth)


def _encode_object(value: object, limits: Limits) -> str:
    kind = type(value)
    members: Any = value if kind is dict else Writer(limits).shallow(value)
    if not isinstance(members, Mapping):
        msg = (
            f"{limits.what} must be a JSON object, got {kind.__name__}; "
            "pass a mapping, a pydantic model or a dataclass instance"
        )
        raise limits.error(msg)
    text = encode(cast("Mapping[Any, Any]", members), limits)
    # Asked of the text: a key may be an Enum whose value it is.
    if _RESERVED_START in text:
        _refuse_reserved(json.loads(text), limits)
    if _MASK in text and _holds_secret(value):
        msg = (
            f"{limits.what} holds a pydantic secret, which would be stored as asterisks; pass a reference to it instead"
        )
        raise limits.error(msg)
    return text


def _refuse_reserved(members: Mapping[str, Any], limits: Limits) -> None:
    for key, remedy in _RESERVED_REMEDY.items():
        if key in members:
            msg = f"{limits.what} has the reserved key {key!r}; {remedy} instead"
            raise limits.error(msg)


def _holds_secret(value: Any) -> bool:
    match value:
        case Secret() | SecretStr() | SecretBytes():
            return True
        case BaseModel():
            return _holds_secret(dict(value))
        case Mapping():
            return any(_holds_secret(item) for item in cast("Mapping[Any, Any]", value).values())
        case list() | tuple() | set() | frozenset():
            return any(_holds_secret(item) for item in cast("Iterable[Any]", value))
        case _:
            return is_dataclass(value) and any(_holds_secret(getattr(value, item.name)) for item in fields(value))
