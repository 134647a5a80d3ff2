"""Checks of what a draft is given: each returns what may be stored, or says what is wrong with it and what to do."""

from __future__ import annotations

from typing import Any, Final, Literal, cast, get_args

from prefect_claim_dispatch.actions import MAX_KEY_LENGTH, MAX_TYPE_LENGTH
from prefect_claim_dispatch.errors import ConfigurationError, InvalidActionError, InvalidKeyError, InvalidTypeError

OnConflict = Literal["keep", "replace", "raise"]

POLICIES: Final = get_args(OnConflict)
MAX_PRIORITY: Final = 32_767
MIN_PRIORITY: Final = -32_768


def checked_type(name: Any) -> str:
    """*name*, if it can be a routing key.

    Raises:
        InvalidTypeError: no text, empty, longer than 120 characters, or with characters that can't be printed.
    """
    if not isinstance(name, str):
        msg = f"type must be text, got {name.__class__.__name__}; write 'email.welcome'"
        raise InvalidTypeError(msg)
    if not 1 <= len(name) <= MAX_TYPE_LENGTH:
        msg = f"type must have 1 to {MAX_TYPE_LENGTH} characters, got {len(name)}"
        raise InvalidTypeError(msg)
    if not name.isprintable() or name != name.strip():
        msg = f"type {name!a} has control characters, separators, or spaces around it; remove them"
        raise InvalidTypeError(msg)
    return str.__str__(name)


def checked_key(what: str, key: Any) -> str:
    """*key*, if both databases can store and index it.

    Bytes need no check: 255 characters are at most 1,020 of them, and an index entry takes 2,704.

    Raises:
        InvalidKeyError: no text, empty, too long, or with a NUL or lone surrogate.
    """
    if not isinstance(key, str):
        msg = f"{what} must be text, got {key.__class__.__name__}; write str(...)"
        raise InvalidKeyError(msg)
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        msg = f"{what} must have 1 to {MAX_KEY_LENGTH} characters, got {len(key)}; use a hash of what is longer"
        raise InvalidKeyError(msg)
    if "\x00" in key or any("\ud800" <= character <= "\udfff" for character in key):
        msg = f"{what} has a NUL or a lone surrogate, which no database stores; remove it"
        raise InvalidKeyError(msg)
    return str.__str__(key)


def checked_table(table: Any) -> str:
    """*table*, if it is text; that it can name a table is checked before anything is sent.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(table, str):
        msg = f"table must be the name of a table, got {table.__class__.__name__}; write 'action_logs'"
        raise ConfigurationError(msg)
    return str.__str__(table)


def checked_priority(priority: Any) -> int:
    """*priority*, if it is a smallint.

    Raises:
        InvalidActionError: it is not, or it is a bool.
    """
    if not isinstance(priority, int) or isinstance(priority, bool):
        msg = f"priority must be an integer, got {priority.__class__.__name__}"
        raise InvalidActionError(msg)
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        msg = f"priority must be from {MIN_PRIORITY} to {MAX_PRIORITY}; higher is sooner"
        raise InvalidActionError(msg)
    return int(priority)


def checked_policy(policy: Any) -> OnConflict:
    """*policy*, if it is one.

    Raises:
        InvalidActionError: it is none of ``keep``, ``replace``, ``raise``.
    """
    if policy not in POLICIES:
        msg = f"on_conflict must be 'keep', 'replace' or 'raise', got {ascii(policy)[:60]}"
        raise InvalidActionError(msg)
    return cast("OnConflict", policy)
