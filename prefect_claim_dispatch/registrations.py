"""What is known of one processor: its code, its options, and what it is called with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from prefect import Flow, Task
from pydantic import TypeAdapter

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.catalogue import catalogue
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.outcomes import Snooze, redacted
from prefect_claim_dispatch.payloads import has_functions, validated
from prefect_claim_dispatch.policies import RetryPolicy

Source = Callable[..., Any]
"""A function, a `Task` or a `Flow`: all of them can be called."""

Facts = Callable[[Action], Mapping[str, Any]]

RowsPerRun = int | Literal["auto"] | None

RetryDelays = float | list[float] | Callable[[int], list[float]] | None
"""As Prefect has it: seconds before each retry, before one after another, or a function from how many to the latter."""

TOGETHER = ("payloads", "actions")
"""Parameters of a function that takes the rows of a run in one call."""

ANY_OBJECT = (Any, dict, Mapping, dict[str, Any], Mapping[str, Any])
"""Annotations that every payload fits as it is decoded: nothing to validate, row by row, once more by way of JSON."""

Parameters = Callable[[Action], Mapping[str, Any]]
"""What of an action goes to a deployment's run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What Prefect is told of a plain function: its own retries inside one attempt, the time limit of each, prints."""

    retries: int | None = None
    retry_delay_seconds: RetryDelays = None
    timeout: timedelta | None = None
    log_prints: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """A child process for each attempt; it may take *memory_bytes* more than it starts with, None for no limit."""

    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The deployment whose runs do the work, elsewhere, and what those are given; see `deployment_processor`."""

    name: str
    parameters: Parameters | None
    lease: timedelta
    queued_at_most: timedelta


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
    rows_per_run: RowsPerRun = None
    linger: timedelta | None = None
    max_running: int | None = None
    deployment: Deployment | None = None
    concurrency_limits: tuple[str, ...] = ()

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The author's function itself."""
        return function_of(self.source)

    @functools.cached_property
    def code(self) -> Callable[..., Any]:
        """The function that was written: what a partial, or an object that can be called, comes down to."""
        return code_of(self.function)

    @property
    def is_flow(self) -> bool:
        """Whether an action becomes a subflow run instead of a task run."""
        return isinstance(self.source, Flow)

    @property
    def is_handed_over(self) -> bool:
        """Whether its runs are the task runner's, in another process if that has others."""
        return not self.is_flow and self.isolation is None and self.deployment is None

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function of this process; isolated, its child runs the loop."""
        return self.isolation is None and inspect.iscoroutinefunction(self.function)

    @property
    def time_limit(self) -> timedelta | None:
        """Of each try: the registration's, or else the one in the decorator of its `Task` or `Flow`."""
        seconds = getattr(self.source, "timeout_seconds", None)
        own = None if seconds is None else timedelta(seconds=seconds)
        return own if self.options.timeout is None else self.options.timeout

    @property
    def call_limit(self) -> timedelta | None:
        """The time limit of each call in a batch, where neither Prefect nor a child's end keeps it."""
        return None if self.isolation is not None else self.time_limit

    @functools.cached_property
    def takes_rows_together(self) -> bool:
        """Whether one call takes all rows of a run: ``payloads`` and ``actions``."""
        return not self._parameters.isdisjoint(TOGETHER)

    def policy(self, default: RetryPolicy) -> RetryPolicy:
        """This processor's durable retries, *default* where it says nothing."""
        return RetryPolicy(
            max_attempts=self.max_attempts or default.max_attempts,
            backoff=default.backoff if self.backoff is None else self.backoff,
            backoff_max=default.backoff_max if self.backoff_max is None else self.backoff_max,
        )

    def arguments(self, action: Action) -> dict[str, Any]:
        """What the function is called with, the payload validated to its annotation, or without one to the catalogue.

        Of a function that takes rows together, this row's share: one element of each list.

        Raises:
            pydantic.ValidationError: the payload does not fit; the row can never be processed as it stands.
        """
        arguments: dict[str, Any] = {}
        if self._payload_name in self._parameters:
            adapter = self._adapter_of(action.type)
            payload = dict(action.payload) if adapter is None else validated(adapter, action.payload)
            arguments[self._payload_name] = payload
        if self._action_name in self._parameters:
            arguments[self._action_name] = action
        return arguments

    def has_validators(self, type_: str) -> bool:
        """Whether validating a payload of *type_* calls code of the author's, which may take any time."""
        if self._payload_name not in self._parameters:
            return False
        adapter = self._adapter_of(type_)
        return adapter is not None and has_functions(adapter)

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
        if self._payload_name in self._parameters and not self._is_annotated:
            for type_ in catalogue.matching(self.pattern):
                catalogue[type_].resolve()

    def _adapter_of(self, type_: str) -> TypeAdapter[Any] | None:
        entry = None if self._is_annotated else catalogue.entry(type_)
        return self._adapter if entry is None else entry.adapter

    @functools.cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.function).parameters)

    @functools.cached_property
    def _payload_name(self) -> str:
        return "payloads" if self.takes_rows_together else "payload"

    @functools.cached_property
    def _action_name(self) -> str:
        return "actions" if self.takes_rows_together else "action"

    @functools.cached_property
    def _is_annotated(self) -> bool:
        return self._payload_name in getattr(self.code, "__annotations__", {})

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        # Read late: at decoration time the names in an annotation may not exist yet.
        annotation = get_type_hints(self.code, include_extras=True).get(self._payload_name, Any)
        if self.takes_rows_together:
            annotation = _element(annotation)
        return None if annotation in ANY_OBJECT else TypeAdapter(annotation)


def _element(annotation: Any) -> Any:
    """What `payloads` holds one of for each row."""
    if annotation in (Any, list, Sequence):
        return Any
    if get_origin(annotation) in (list, Sequence):
        return get_args(annotation)[0]
    msg = f"payloads holds one element for each row: annotate it as list[...] or Sequence[...], got {annotation}"
    raise TypeError(msg)


def function_of(source: Any) -> Callable[..., Any]:
    """The function in *source*, or *source* itself."""
    return source.fn if isinstance(source, Task | Flow) else source  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def code_of(function: Any) -> Callable[..., Any]:
    """What *function* comes down to, where it is a partial, or an object that can be called; else itself."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
