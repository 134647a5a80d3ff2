"""Processors: what is done with an action of a type. Registered by decorator, looked up by type.

A plain function becomes a Prefect task; a `Task` or a `Flow` is registered as it is. What the claim flow really
submits is a copy of it that takes a reference instead of the payload (see :mod:`prefect_claim_dispatch.dispatching`),
so that no payload reaches Prefect's API.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, TypeVar, get_type_hints

from prefect import Flow, Task
from pydantic import TypeAdapter

from prefect_claim_dispatch.actions import MAX_TYPE_LENGTH, Action
from prefect_claim_dispatch.catalogue import catalogue, import_catalogue
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.modules import import_modules
from prefect_claim_dispatch.outcomes import Snooze, redacted
from prefect_claim_dispatch.payloads import validated
from prefect_claim_dispatch.policies import RetryPolicy

Source = Callable[..., Any]
"""A function, a `Task` or a `Flow`: all of them can be called."""

Facts = Callable[[Action], Mapping[str, Any]]
AnySource = TypeVar("AnySource", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What Prefect is told of a plain function: its own retries inside one attempt, and the time limit of each."""

    retries: int | None = None
    retry_delay_seconds: float | list[float] | None = None
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """A child process for each attempt; it may take *memory_bytes* more than it starts with, None for no limit."""

    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Processor:
    """One registration: a type or pattern, the code, and how its failures are treated."""

    pattern: str
    source: Source
    place: str
    options: TaskOptions = field(default_factory=TaskOptions)
    max_attempts: int | None = None
    backoff: timedelta | None = None
    backoff_max: timedelta | None = None
    facts: Facts | None = None
    on_rules_false: Snooze | None = None
    isolation: Isolation | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The author's function itself."""
        return _function(self.source)

    @property
    def is_flow(self) -> bool:
        """Whether an action becomes a subflow run instead of a task run."""
        return isinstance(self.source, Flow)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function of this process; isolated, its child runs the loop."""
        return self.isolation is None and inspect.iscoroutinefunction(self.function)

    def policy(self, default: RetryPolicy) -> RetryPolicy:
        """This processor's durable retries, *default* where it says nothing."""
        return RetryPolicy(
            max_attempts=self.max_attempts or default.max_attempts,
            backoff=default.backoff if self.backoff is None else self.backoff,
            backoff_max=default.backoff_max if self.backoff_max is None else self.backoff_max,
        )

    def arguments(self, action: Action) -> dict[str, Any]:
        """What the function is called with, the payload validated to its annotation, or without one to the catalogue.

        Raises:
            pydantic.ValidationError: the payload does not fit; the row can never be processed as it stands.
        """
        arguments: dict[str, Any] = {}
        if "payload" in self._parameters:
            adapter = self._adapter_of(action.type)
            arguments["payload"] = dict(action.payload) if adapter is None else validated(adapter, action.payload)
        if "action" in self._parameters:
            arguments["action"] = action
        return arguments

    def check(self) -> None:
        """Resolve what `arguments` needs, now that every module is imported.

        Raises:
            RegistrationError: the payload's annotation, or its class in the catalogue, can't be found or validated;
                found per row, it would send a whole backlog to dead.
        """
        try:
            _ = self._adapter
        except Exception as error:
            msg = (
                f"processor {self.pattern!r}: the payload of {self.place} can't be validated to its annotation "
                f"({redacted(f'{type(error).__name__}: {error}', 300)})"
            )
            raise RegistrationError(msg) from error
        if "payload" in self._parameters and not self._is_annotated:
            for type_ in catalogue.matching(self.pattern):
                catalogue[type_].resolve()

    def _adapter_of(self, type_: str) -> TypeAdapter[Any] | None:
        entry = None if self._is_annotated else catalogue.entry(type_)
        return self._adapter if entry is None else entry.adapter

    @functools.cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.function).parameters)

    @functools.cached_property
    def _is_annotated(self) -> bool:
        return "payload" in getattr(self.function, "__annotations__", {})

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        # Read late: at decoration time the names in an annotation may not exist yet.
        annotation = get_type_hints(self.function, include_extras=True).get("payload", Any)
        return None if annotation in (Any, dict, Mapping) else TypeAdapter(annotation)


class Registry:
    """Processors by type. Exact beats pattern, the longest pattern wins; two for the same type are refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exact: dict[str, Processor] = {}
        self._patterns: dict[str, Processor] = {}

    def add(self, processor: Processor) -> None:
        """Register *processor*. The same function from the same place again, as after a reload, replaces itself.

        Raises:
            RegistrationError: the type is taken, with both places named.
        """
        with self._lock:
            known = self._patterns if "*" in processor.pattern else self._exact
            other = known.get(processor.pattern)
            if other is not None and other.place != processor.place:
                msg = (
                    f"processor {processor.pattern!r} of {processor.place} is already registered by {other.place}; "
                    "choose another type"
                )
                raise RegistrationError(msg)
            known[processor.pattern] = processor

    def match(self, type_: str) -> Processor | None:
        """The processor for actions of *type_*, None when nobody registered it."""
        exact = self._exact.get(type_)
        if exact is not None:
            return exact
        patterns = [pattern for pattern in self._patterns if fnmatchcase(type_, pattern)]
        return self._patterns[max(patterns, key=lambda pattern: (len(pattern), pattern))] if patterns else None

    def check(self) -> None:
        """Find what is wrong with a processor before anything is claimed; see `Processor.check`."""
        for known in (*self._exact.values(), *self._patterns.values()):
            known.check()

    @property
    def types(self) -> tuple[str, ...]:
        """All types and patterns that are registered, sorted."""
        return tuple(sorted([*self._exact, *self._patterns]))


registry = Registry()
"""Where `@processor` registers unless told otherwise."""


def processor(
    type_: str,
    /,
    *,
    retries: int | None = None,
    retry_delay_seconds: float | list[float] | None = None,
    timeout: timedelta | None = None,
    max_attempts: int | None = None,
    backoff: timedelta | None = None,
    backoff_max: timedelta | None = None,
    facts: Facts | None = None,
    on_rules_false: Snooze | None = None,
    isolate: bool | Isolation = False,
    registry: Registry = registry,
) -> Callable[[AnySource], AnySource]:
    """Register a function, `Task` or `Flow` as the processor of *type_*, and return it unchanged.

    Callable and testable on its own.

    It may take ``payload``, validated to its annotation (pydantic model, TypedDict, dict), or without one to the class
    that the catalogue has for the action's type; and ``action``, the `Action`; both by name. What it returns means
    processed, unless it is a `Snooze` or a `Cancel`; any exception means failed.

    Args:
        type_: the action type, or a pattern with ``*``: ``report.*``.
        retries: Prefect's own, inside one attempt; fast and not stored. For a `Task` or `Flow`, say it in its own
            decorator.
        retry_delay_seconds: as Prefect has it.
        timeout: of each try. A thread can't be stopped inside a blocking call: *timed out* does not mean that the
            effect did not happen.
        max_attempts: durable attempts, over crashes and deploys; None takes the settings' ``MAX_ATTEMPTS``.
        backoff: wait after the first failed attempt; doubles each time.
        backoff_max: the longest wait.
        facts: the present state that the action's rules look at, asked for just before dispatch.
        on_rules_false: look again later instead of cancelling when the rules are false.
        isolate: run each attempt in a child process, which is killed at *timeout* whatever it does; `Isolation` also
            limits its memory. For a function or `Task` that can be imported by its name.
        registry: where to register; the default is what the claim flow uses.

    Raises:
        RegistrationError: the type is taken or malformed, or the signature can't be called; at import, before
            anything is claimed.
    """
    _check_pattern(type_)
    _check_attempts(type_, max_attempts)
    options = TaskOptions(retries=retries, retry_delay_seconds=retry_delay_seconds, timeout=timeout)

    def register(source: AnySource) -> AnySource:
        if _function(source) is not source and options != TaskOptions(timeout=timeout):
            msg = f"processor {type_!r}: put retries into the task's or flow's own decorator"
            raise RegistrationError(msg)
        new = Processor(
            pattern=type_,
            source=source,
            place=_place(source),
            options=options,
            max_attempts=max_attempts,
            backoff=backoff,
            backoff_max=backoff_max,
            facts=facts,
            on_rules_false=on_rules_false,
            isolation=Isolation() if isolate is True else isolate or None,
        )
        _check_isolation(new)
        _check_signature(new)
        registry.add(new)
        return source

    return register


def load_modules(modules: Iterable[str], *, catalogue: Iterable[str] = ()) -> None:
    """Import the modules of the *catalogue*, and then the *modules* whose decorators register processors.

    Raises:
        RegistrationError: one can't be imported, or a processor can't be called; nothing has been claimed.
    """
    import_catalogue(catalogue)
    import_modules(modules, what="processor module")
    registry.check()


def _function(source: Any) -> Callable[..., Any]:
    return source.fn if isinstance(source, Task | Flow) else source  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _place(source: Source) -> str:
    function = inspect.unwrap(_function(source))
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def _check_pattern(type_: str) -> None:
    if not type_ or len(type_) > MAX_TYPE_LENGTH or not type_.isprintable():
        msg = f"a processor's type must be 1 to {MAX_TYPE_LENGTH} printable characters, got {type_!r}"
        raise RegistrationError(msg)
    if "?" in type_ or "[" in type_:
        msg = f"processor {type_!r}: the only wildcard of a pattern is *"
        raise RegistrationError(msg)


def _check_attempts(type_: str, max_attempts: int | None) -> None:
    if max_attempts is not None and max_attempts < 1:
        msg = f"processor {type_!r}: max_attempts must be 1 or more, got {max_attempts}"
        raise RegistrationError(msg)


def _check_isolation(new: Processor) -> None:
    if new.isolation is not None and new.is_flow:
        msg = (
            f"processor {new.pattern!r}: {new.place} is a flow, whose run is followed from this process; "
            "isolate a function or a task, or use a deployment"
        )
        raise RegistrationError(msg)
    if new.isolation is not None and "<locals>" in new.function.__qualname__:
        msg = f"processor {new.pattern!r}: {new.place} can't be imported by its name in a child; move it to its module"
        raise RegistrationError(msg)


def _check_signature(new: Processor) -> None:
    function = new.function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"processor {new.pattern!r}: {new.place} is a generator; write a function that returns"
        raise RegistrationError(msg)
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if name in ("payload", "action"):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                msg = f"processor {new.pattern!r}: {new.place} takes {name!r} by position only; it is passed by name"
                raise RegistrationError(msg)
        elif not optional:
            msg = f"processor {new.pattern!r}: {new.place} wants {name!r}; only 'payload' and 'action' are passed"
            raise RegistrationError(msg)
