"""What each option of a processor may be. A wrong one is refused at import, before anything is claimed.

Each check returns the option in the one form in which the rest of the package knows it, or says which option of which
processor it is, what it got, and what it wants. A `bool` is no number; NaN, and what never ends, is no duration.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, cast

from prefect_claim_dispatch.actions import MAX_TYPE_LENGTH
from prefect_claim_dispatch.durations import MOMENT, checked_duration, shown
from prefect_claim_dispatch.errors import ConfigurationError, RegistrationError
from prefect_claim_dispatch.outcomes import Snooze
from prefect_claim_dispatch.patterns import NO_WILDCARDS
from prefect_claim_dispatch.registrations import Facts, Isolation, Parameters, RetryDelays, TaskOptions
from prefect_claim_dispatch.registry import Registry

MAX_ATTEMPTS: Final = 1_000_000
MAX_RUNNING: Final = 1_000_000
MAX_RETRIES: Final = 1_000_000
MAX_RETRY_DELAYS: Final = 50
"""As many as Prefect takes in a list."""

DELAYS_WANTED: Final = (
    f"must be a number of seconds, a list of 1 to {MAX_RETRY_DELAYS} of them, or a function from the number of retries "
    "to such a list"
)


def checked_pattern(type_: Any) -> str:
    """*type_*, if it is a type or a pattern.

    Raises:
        RegistrationError: it is neither.
    """
    if callable(type_):
        msg = f"a processor needs the type of its actions, got {shown(type_)}; write @processor('email.welcome')"
        raise RegistrationError(msg)
    if not isinstance(type_, str) or not type_ or len(type_) > MAX_TYPE_LENGTH or not type_.isprintable():
        msg = f"a processor's type must be 1 to {MAX_TYPE_LENGTH} printable characters, got {shown(type_)}"
        raise RegistrationError(msg)
    if any(mark in type_ for mark in NO_WILDCARDS):
        msg = f"processor {type_!r}: the only wildcard of a pattern is *"
        raise RegistrationError(msg)
    return type_


def checked_registry(type_: str, registry: Any) -> Registry:
    """*registry*, if it is one.

    Raises:
        RegistrationError: it is none.
    """
    if not isinstance(registry, Registry):
        raise _wrong(type_, "registry", "must be a Registry", registry)
    return registry


def checked_attempts(type_: str, max_attempts: Any) -> int | None:
    """*max_attempts*, if anything would be tried by it.

    Raises:
        RegistrationError: nothing would, or it is no whole number.
    """
    return _whole_number(type_, "max_attempts", max_attempts, 1, MAX_ATTEMPTS)


def checked_max_running(type_: str, max_running: Any) -> int | None:
    """*max_running*, if anything would run by it: to stop a type is what a pause is for.

    Raises:
        ConfigurationError: nothing would, or it is no whole number.
    """
    if max_running is not None and (type(max_running) is not int or not 1 <= max_running <= MAX_RUNNING):
        msg = (
            f"processor {type_!r}: max_running must be 1 or more, or None for no limit, got {shown(max_running)}; "
            "claim-dispatch pause stops a type"
        )
        raise ConfigurationError(msg)
    return max_running


def checked_wait(type_: str, option: str, value: Any) -> timedelta | None:
    """*value*, a wait between attempts, as a timedelta; zero means at once.

    Raises:
        RegistrationError: it is no duration.
    """
    return None if value is None else checked_duration(value, f"processor {type_!r}: {option}", error=RegistrationError)


def checked_limit(type_: str, option: str, value: Any) -> timedelta | None:
    """*value*, a limit of time, as a timedelta above zero.

    Raises:
        RegistrationError: it is none.
    """
    if value is None:
        return None
    return checked_duration(value, f"processor {type_!r}: {option}", error=RegistrationError, least=MOMENT)


def checked_task_options(
    type_: str, retries: Any, retry_delay_seconds: RetryDelays, timeout: Any, log_prints: Any
) -> TaskOptions:
    """What Prefect is told of a function.

    Raises:
        RegistrationError: Prefect would refuse it when the first action is dispatched, or never retry by it.
    """
    retries = _whole_number(type_, "retries", retries, 0, MAX_RETRIES)
    delays: Any = retry_delay_seconds
    if callable(delays) and not is_asynchronous(delays):
        delays = _called_for_delays(type_, delays, retries or 0) or None
    if delays is not None and not _are_delays(delays):
        raise _wrong(type_, "retry_delay_seconds", DELAYS_WANTED, delays)
    if log_prints is not None and not isinstance(log_prints, bool):
        raise _wrong(type_, "log_prints", "must be True, False, or None for Prefect's own setting", log_prints)
    limit = checked_limit(type_, "timeout", timeout)
    return TaskOptions(retries=retries, retry_delay_seconds=retry_delay_seconds, timeout=limit, log_prints=log_prints)


def checked_facts(type_: str, facts: Any) -> Facts | None:
    """*facts*, if it can be called with an action.

    Raises:
        RegistrationError: it can't, or would have to be awaited.
    """
    return _function_of_action(type_, "facts", facts)


def checked_parameters(type_: str, parameters: Any) -> Parameters | None:
    """The *parameters* of a deployment, if they can be asked of an action.

    Raises:
        RegistrationError: they can't, or would have to be awaited.
    """
    return _function_of_action(type_, "parameters", parameters)


def checked_snooze(type_: str, snooze: Any) -> Snooze | None:
    """What becomes of rows whose rules are false.

    Raises:
        RegistrationError: it is no Snooze.
    """
    if snooze is not None and not isinstance(snooze, Snooze):
        wanted = "must be a Snooze, or None to cancel; write Snooze(timedelta(hours=1))"
        raise _wrong(type_, "on_rules_false", wanted, snooze)
    return snooze


def checked_isolation(type_: str, isolate: Any) -> Isolation | None:
    """In what child process attempts run; None for none.

    Raises:
        RegistrationError: it says neither yes nor no, nor how.
    """
    if isolate is True:
        return Isolation()
    if isolate is False or isolate is None:
        return None
    if not isinstance(isolate, Isolation):
        raise _wrong(type_, "isolate", "must be True, False or an Isolation", isolate)
    memory: Any = isolate.memory_bytes
    if memory is not None and (type(memory) is not int or not 1 <= memory < 2**62):
        wanted = "must be given a whole number of memory_bytes above zero, or None for no limit"
        raise _wrong(type_, "isolate", wanted, isolate)
    return isolate


def checked_limits(type_: str, named: Any) -> tuple[str, ...]:
    """The names of concurrency limits, sorted: whoever takes several takes them in the same order.

    Raises:
        RegistrationError: they are no names, or there is none.
    """
    if named is None:
        return ()
    is_several = isinstance(named, Iterable) and not isinstance(named, str | bytes | Mapping)
    names: list[Any] = list(cast("Iterable[Any]", named)) if is_several else [named]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise _wrong(type_, "concurrency_limit", "must be the name of a limit, or several names", named)
    return tuple(sorted(set(names)))


def is_asynchronous(function: Any) -> bool:
    """Whether calling *function* gives what has to be awaited or consumed, as far as can be seen without a call."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    called = function if inspect.isroutine(function) else function.__class__.__call__
    kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    return any(is_kind(one) for is_kind in kinds for one in (function, called))


def _function_of_action(type_: str, option: str, function: Any) -> Any:
    wanted = "must be a function of the action, which is not async"
    if function is None:
        return None
    if not callable(function) or is_asynchronous(function):
        raise _wrong(type_, option, wanted, function)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some of what is written in C tells none
        return function
    try:
        signature.bind(None)
    except TypeError:
        raise _wrong(type_, option, f"{wanted}, and of nothing else", function) from None
    return function


def _whole_number(type_: str, option: str, number: Any, least: int, most: int) -> int | None:
    if number is not None and (type(number) is not int or not least <= number <= most):
        msg = (
            f"processor {type_!r}: {option} must be {least} or more, got {shown(number)}; "
            f"give a whole number of {most:,} at most"
        )
        raise RegistrationError(msg)
    return number


def _called_for_delays(type_: str, function: Any, retries: int) -> Any:
    try:
        return function(retries)
    except Exception as error:
        raise _wrong(type_, "retry_delay_seconds", DELAYS_WANTED, error) from error


def _are_delays(delays: Any) -> bool:
    if isinstance(delays, list):
        several = cast("list[Any]", delays)
        return 1 <= len(several) <= MAX_RETRY_DELAYS and all(map(_is_delay, several))
    return _is_delay(delays)


def _is_delay(seconds: Any) -> bool:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return is_number and math.isfinite(seconds) and seconds >= 0


def _wrong(type_: str, option: str, wanted: str, got: Any) -> RegistrationError:
    return RegistrationError(f"processor {type_!r}: {option} {wanted}, got {shown(got)}")
