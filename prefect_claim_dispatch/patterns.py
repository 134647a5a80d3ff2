"""Types and patterns of types, by one rule for processors and for pauses."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

from prefect_claim_dispatch.actions import MAX_TYPE_LENGTH
from prefect_claim_dispatch.errors import InvalidTypeError

WILDCARD: Final = "*"
"""The only one there is."""

NO_WILDCARDS: Final = "?["
"""What other languages of patterns mean something by, and ours refuses."""


def matches(pattern: str, type_: str) -> bool:
    """Whether *type_* is *pattern*, or one of those that it means."""
    return pattern == type_ or (WILDCARD in pattern and fnmatchcase(type_, pattern))


def matching(patterns: Iterable[str], type_: str) -> tuple[str, ...]:
    """Those of *patterns* that mean *type_*, in their order."""
    return tuple(pattern for pattern in patterns if matches(pattern, type_))


def checked_pattern(pattern: Any) -> str:
    """*pattern*, if it is a type, or a pattern of types with ``*``.

    Raises:
        InvalidTypeError: no text, empty, longer than 120 characters, with characters that can't be printed or spaces
            around it, or with another wildcard.
    """
    if not isinstance(pattern, str):
        msg = f"a type or pattern must be text, got {pattern.__class__.__name__}; write 'email.welcome' or 'email.*'"
        raise InvalidTypeError(msg)
    if not 1 <= len(pattern) <= MAX_TYPE_LENGTH or not pattern.isprintable() or pattern != pattern.strip():
        msg = f"a type or pattern must be 1 to {MAX_TYPE_LENGTH} printable characters, got {ascii(pattern)[:60]}"
        raise InvalidTypeError(msg)
    if any(mark in pattern for mark in NO_WILDCARDS):
        msg = f"pattern {pattern!r}: the only wildcard is {WILDCARD}"
        raise InvalidTypeError(msg)
    return str.__str__(pattern)
