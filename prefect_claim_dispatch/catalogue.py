"""The catalogue of action types: which class describes the payload of which type. Optional, and imports no Prefect.

A type in the catalogue is published only with a payload that its class reads back: the document is validated as it will
be stored, so a dict, an instance of the class and any other mapping are asked the same, and an instance that was
changed to something its own class refuses is refused as well. Types that are not in it are published as they always
were. It is of this process: importing the module that has the classes is what fills it.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeVar, cast, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from prefect_claim_dispatch.checks import checked_type
from prefect_claim_dispatch.errors import ConfigurationError, InvalidPayloadError, InvalidTypeError, RegistrationError
from prefect_claim_dispatch.modules import import_modules
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.payloads import Payload, problems

__all__ = ["Catalogue", "Entry", "action_type", "catalogue", "import_catalogue"]

PayloadT = TypeVar("PayloadT", bound=Payload)
# Type checkers see that a class is a dataclass only after its decorators.
DecoratedT = TypeVar("DecoratedT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One type, the class of its payload, and where the two were brought together."""

    type: str
    payload_class: type[Any]
    place: str

    @property
    def class_name(self) -> str:
        """The class with its module: ``app.mail.WelcomeEmail``."""
        return f"{self.payload_class.__module__}.{self.payload_class.__qualname__}"

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """What validates the payload, made when it is first wanted: names in annotations may come after the class.

        Raises:
            RegistrationError: pydantic can make none of this class.
        """
        try:
            return self._adapter
        except Exception as error:
            raise self._unusable(error) from error

    def resolve(self) -> None:
        """Find out now whether the class can validate anything.

        Raises:
            RegistrationError: it can't.
        """
        _ = self.adapter

    def check(self, document: str) -> None:
        """Refuse a *document*, the payload as the text of a JSON object, that the processor could not read.

        Raises:
            InvalidPayloadError: it does not fit; the fields are named and no value is shown.
            RegistrationError: pydantic can make no validator of this class.
        """
        adapter = self.adapter
        try:
            adapter.validate_json(document)
        except ValidationError as error:
            found = problems(error)
        except Exception as error:  # noqa: BLE001 - a validator is the author's code and may raise anything
            found = f"validation raised {type(error).__name__}"
        else:
            return
        # Not chained: what was raised shows the values.
        msg = f"payload of {self.type!r} does not fit {self.class_name}: {found}; change the payload or the class"
        raise InvalidPayloadError(msg)

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of what may be published, for publishers in any language.

        Raises:
            RegistrationError: pydantic can make none of this class.
        """
        adapter = self.adapter
        try:
            return adapter.json_schema(mode="validation")
        except Exception as error:
            raise self._unusable(error) from error

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        adapter = TypeAdapter(self.payload_class)
        # A class whose annotations name what is not there gets a stand-in, which says so when it is first looked at.
        _ = adapter.validator.title
        return adapter

    def _unusable(self, error: Exception) -> RegistrationError:
        reason = redacted(f"{type(error).__name__}: {error}".partition("\n")[0], 300)
        return RegistrationError(
            f"action type {self.type!r}: pydantic can't use {self.class_name}, registered at {self.place} "
            f"({reason}); correct its annotations"
        )


class Catalogue:
    """Entries by type. Two classes for one type are refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self.entry: Callable[[str], Entry | None] = self._entries.get
        """The entry of a type, None when the catalogue has none: asked for every row that is published."""

    def add(self, entry: Entry) -> None:
        """Register *entry*. The same class again, or its successor after a reload of its module, replaces itself.

        Raises:
            RegistrationError: the type has another class, with both places named.
        """
        with self._lock:
            other = self._entries.get(entry.type)
            if other is not None and other.class_name != entry.class_name:
                msg = (
                    f"action type {entry.type!r} has the class {other.class_name}, registered at {other.place}, and "
                    f"can't get {entry.class_name} at {entry.place} too; choose another type"
                )
                raise RegistrationError(msg)
            self._entries[entry.type] = entry

    def __getitem__(self, type_: str) -> Entry:
        """The entry of *type_*.

        Raises:
            ConfigurationError: it is not in the catalogue.
        """
        entry = self.entry(type_)
        if entry is None:
            known = ", ".join(self.types) or "none"
            msg = f"type {type_!r} is not in the catalogue, which has {known}; import the module that registers it"
            raise ConfigurationError(msg)
        return entry

    @property
    def types(self) -> tuple[str, ...]:
        """All types that are registered, sorted."""
        return tuple(sorted(self._entries))

    def matching(self, pattern: str) -> tuple[str, ...]:
        """The registered types that fit a processor's type or pattern, sorted."""
        return tuple(type_ for type_ in self.types if fnmatchcase(type_, pattern))


catalogue = Catalogue()
"""Where `action_type` registers: one for the process."""


def import_catalogue(modules: Iterable[str]) -> None:
    """Import the *modules* whose classes belong into the catalogue.

    Raises:
        RegistrationError: one can't be imported, or something in it can't be registered.
    """
    import_modules(modules, what="catalogue module")


@overload
def action_type(name: str, /) -> Callable[[type[DecoratedT]], type[DecoratedT]]: ...
@overload
def action_type(name: str, payload_class: type[PayloadT], /) -> type[PayloadT]: ...
def action_type(name: str, payload_class: type[Any] | None = None, /) -> Any:
    """Put a type and the class of its payload into the catalogue, and return the class unchanged.

    Above the class, ``@action_type("email.welcome")``; or as a call, ``action_type("email.welcome", WelcomeEmail)``.
    The class is a pydantic model, a dataclass or a TypedDict; one class may serve several types. From then on the type
    is published, in this process, only with payloads that fit it.

    Raises:
        RegistrationError: the type is malformed, a pattern, or has another class; or this is no class of payloads.
    """
    _check_name(name)
    # The caller's line: a class does not know its own before Python 3.13.
    caller = traceback.extract_stack(limit=2)[0]
    place = f"{caller.filename}:{caller.lineno}"

    def register(registered: type[Any]) -> type[Any]:
        _check_class(name, registered, place)
        catalogue.add(Entry(type=name, payload_class=registered, place=place))
        return registered

    return register if payload_class is None else register(payload_class)


def _check_name(name: Any) -> None:
    try:
        checked_type(name)
    except InvalidTypeError as error:
        msg = f"action_type: {error}"
        raise RegistrationError(msg) from None
    if any(wildcard in name for wildcard in "*?["):
        msg = f"action type {name!r} is a pattern, and a payload's class belongs to one type; register each type"
        raise RegistrationError(msg)


def _check_class(name: str, registered: Any, place: str) -> None:
    if isinstance(registered, type):
        # Only a TypedDict knows its required keys, whether it is typing's or typing_extensions'.
        kinds = (issubclass(registered, BaseModel), is_dataclass(registered), hasattr(registered, "__required_keys__"))
        if any(kinds):
            return
    got = registered.__name__ if isinstance(registered, type) else type(cast("object", registered)).__name__
    msg = f"action type {name!r} at {place} wants a pydantic model, a dataclass or a TypedDict as its class, got {got}"
    raise RegistrationError(msg)
