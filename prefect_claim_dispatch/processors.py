"""Processors: what is done with an action of a type. Registered by decorator, looked up by type.

A plain function becomes a Prefect task; a `Task` or a `Flow` is registered as it is. What the claim flow really
submits is a copy of it that takes a reference instead of the payload (see :mod:`prefect_claim_dispatch.dispatching`),
so that no payload reaches Prefect's API.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from prefect_claim_dispatch import kinds
from prefect_claim_dispatch.catalogue import import_catalogue
from prefect_claim_dispatch.durations import MOMENT, checked_duration, shown
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.modules import import_modules
from prefect_claim_dispatch.outcomes import Snooze
from prefect_claim_dispatch.registrations import (
    TOGETHER,
    Facts,
    Isolation,
    Processor,
    RetryDelays,
    RowsPerRun,
    Source,
    TaskOptions,
    code_of,
    function_of,
)
from prefect_claim_dispatch.registry import Registry, registry

__all__ = ["Isolation", "Processor", "Registry", "TaskOptions", "load_modules", "processor", "registry"]

MAX_ROWS_PER_RUN = 10_000
MAX_LINGER = timedelta(minutes=1)
ONE_BY_ONE = ("payload", "action")

AnySource = TypeVar("AnySource", bound=Callable[..., Any])


def processor(
    type_: str,
    /,
    *,
    retries: int | None = None,
    retry_delay_seconds: RetryDelays = None,
    timeout: timedelta | float | None = None,
    max_attempts: int | None = None,
    backoff: timedelta | float | None = None,
    backoff_max: timedelta | float | None = None,
    facts: Facts | None = None,
    on_rules_false: Snooze | None = None,
    isolate: bool | Isolation = False,
    rows_per_run: RowsPerRun = None,
    linger: timedelta | float | None = None,
    max_running: int | None = None,
    concurrency_limit: str | Sequence[str] | None = None,
    log_prints: bool | None = None,
    registry: Registry = registry,
) -> Callable[[AnySource], AnySource]:
    """Register a function, `Task` or `Flow` as the processor of *type_*, and return it unchanged.

    Callable and testable on its own.

    It may take ``payload``, validated to its annotation (pydantic model, TypedDict, dict), or without one to the class
    that the catalogue has for the action's type; and ``action``, the `Action`; both by name. What it returns means
    processed, unless it is a `Snooze` or a `Cancel`; any exception means failed.

    A duration is a `timedelta`, or a number of seconds.

    Args:
        type_: the action type, or a pattern with ``*``: ``report.*``.
        retries: Prefect's own, inside one attempt; fast and not stored. For a `Task` or `Flow`, say it in its own
            decorator.
        retry_delay_seconds: as Prefect has it.
        timeout: of each try; in a batch, of each call. A thread can't be stopped inside a blocking call: *timed out*
            does not mean that the effect did not happen.
        max_attempts: durable attempts, over crashes and deploys; None takes the settings' ``MAX_ATTEMPTS``.
        backoff: wait after the first failed attempt; doubles each time.
        backoff_max: the longest wait.
        facts: the present state that the action's rules look at, asked for just before dispatch.
        on_rules_false: look again later instead of cancelling when the rules are false.
        isolate: run each attempt in a child process, which is killed at *timeout* whatever it does; `Isolation` also
            limits its memory. For a function or `Task` that can be imported by its name.
        rows_per_run: up to so many actions share one run, called row by row and settled as each finishes; or, taken
            as ``payloads`` and ``actions``, in one call that returns None or one outcome for each. ``"auto"``: a run
            for each while few are due, groups when many are. None: a run for each. See docs/lanes.md.
        linger: how long a due action waits in the table, at most, for as many as fill a run of *rows_per_run*; up to a
            minute. None: whatever is due goes at once.
        max_running: at most so many actions of one exact type are claimed at a time, in all claim flows together; the
            types that a pattern means have that many each. It counts actions and not runs: a batch is no larger. None:
            no limit. See docs/limits.md.
        concurrency_limit: the name of a global concurrency limit of Prefect's, or several: each run takes a slot of
            every one of them while the function is called. An action that gets none in half a minute is put off by
            seconds, at no attempt. See docs/lanes.md.
        log_prints: what the function prints goes to its run's log; None: as Prefect's setting and the claim flow say,
            which is no. For a `Task` or `Flow`, say it in its own decorator. See docs/logging.md.
        registry: where to register; the default is what the claim flow uses.

    Raises:
        RegistrationError: the type is taken or malformed, an option is of a wrong kind, or the signature can't be
            called; at import, before anything is claimed.
        ConfigurationError: a *max_running* by which nothing would ever run.
    """
    type_ = kinds.checked_pattern(type_)
    registry = kinds.checked_registry(type_, registry)
    options = kinds.checked_task_options(type_, retries, retry_delay_seconds, timeout, log_prints)
    described: dict[str, Any] = {
        "max_attempts": kinds.checked_attempts(type_, max_attempts),
        "backoff": kinds.checked_wait(type_, "backoff", backoff),
        "backoff_max": kinds.checked_wait(type_, "backoff_max", backoff_max),
        "facts": kinds.checked_facts(type_, facts),
        "on_rules_false": kinds.checked_snooze(type_, on_rules_false),
        "isolation": kinds.checked_isolation(type_, isolate),
        "rows_per_run": rows_per_run,
        "linger": _checked_linger(type_, linger, rows_per_run),
        "max_running": kinds.checked_max_running(type_, max_running),
        "concurrency_limits": kinds.checked_limits(type_, concurrency_limit),
    }

    def register(source: AnySource) -> AnySource:
        _check_source(type_, source)
        if function_of(source) is not source and options != TaskOptions(timeout=options.timeout):
            msg = f"processor {type_!r}: put retries and log_prints into the task's or flow's own decorator"
            raise RegistrationError(msg)
        new = Processor(pattern=type_, source=source, place=place_of(source), options=options, **described)
        _check_rows_per_run(new)
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


def place_of(source: Source) -> str:
    """Where *source* is written, as refusals name it."""
    function = inspect.unwrap(code_of(function_of(source)))
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def _check_source(type_: str, source: Any) -> None:
    if not callable(function_of(source)):
        msg = f"processor {type_!r}: what is registered must be a function, a Task or a Flow, got {source!a}"
        raise RegistrationError(msg[:500])
    seconds = getattr(source, "timeout_seconds", None) if function_of(source) is not source else None
    if seconds is not None:
        what = f"processor {type_!r}: timeout_seconds in the decorator of {place_of(source)}"
        checked_duration(seconds, what, error=RegistrationError)


def _check_rows_per_run(new: Processor) -> None:
    rows: Any = new.rows_per_run
    if rows is not None and rows != "auto" and (type(rows) is not int or not 1 <= rows <= MAX_ROWS_PER_RUN):
        msg = f"processor {new.pattern!r}: rows_per_run must be 1 to {MAX_ROWS_PER_RUN}, or 'auto', got {shown(rows)}"
        raise RegistrationError(msg)
    if rows is not None and new.is_flow:
        msg = f"processor {new.pattern!r}: rows_per_run is for a function or a task, and {new.place} is a flow"
        raise RegistrationError(msg)
    if new.takes_rows_together and rows is None:
        msg = (
            f"processor {new.pattern!r}: {new.place} takes rows together; "
            "say rows_per_run, or take 'payload' and 'action'"
        )
        raise RegistrationError(msg)
    if new.takes_rows_together and new.isolation is not None:
        msg = (
            f"processor {new.pattern!r}: {new.place} takes rows together, and a child process takes one; "
            "isolate a function of 'payload' and 'action'"
        )
        raise RegistrationError(msg)


def _checked_linger(type_: str, linger: Any, rows_per_run: Any) -> timedelta | None:
    if linger is None:
        return None
    if type(rows_per_run) is not int:
        msg = (
            f"processor {type_!r}: linger waits for as many actions as fill a run, and rows_per_run says no "
            f"number, got {rows_per_run!r}"
        )
        raise RegistrationError(msg)
    return checked_duration(
        linger,
        f"processor {type_!r}: linger",
        error=RegistrationError,
        least=MOMENT,
        most=MAX_LINGER,
        remedy="for what is to wait longer, publish a later end_at",
    )


def _check_isolation(new: Processor) -> None:
    if new.isolation is not None and new.is_flow:
        msg = (
            f"processor {new.pattern!r}: {new.place} is a flow, whose run is followed from this process; "
            "isolate a function or a task, or use a deployment"
        )
        raise RegistrationError(msg)
    # A functools.partial, or an object that can be called, has no name of its own.
    if new.isolation is not None and "<" in getattr(new.function, "__qualname__", "<nameless>"):
        msg = f"processor {new.pattern!r}: {new.place} can't be imported by its name in a child; move it to its module"
        raise RegistrationError(msg)


def _check_signature(new: Processor) -> None:
    function = new.function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"processor {new.pattern!r}: {new.place} is a generator; write a function that returns"
        raise RegistrationError(msg)
    wanted = TOGETHER if new.takes_rows_together else ONE_BY_ONE
    for name, parameter in inspect.signature(function).parameters.items():
        if new.takes_rows_together and name in ONE_BY_ONE:
            msg = f"processor {new.pattern!r}: {new.place} takes {name!r} beside rows together; take one or the other"
            raise RegistrationError(msg)
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if name in wanted:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                msg = f"processor {new.pattern!r}: {new.place} takes {name!r} by position only; it is passed by name"
                raise RegistrationError(msg)
        elif not optional:
            passed = " and ".join(map(repr, wanted))
            msg = f"processor {new.pattern!r}: {new.place} wants {name!r}; only {passed} are passed"
            raise RegistrationError(msg)
