"""The kinds of options: what is wrong with one is said at import, by name, and never found out by a row."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow, task
from prefect.tasks import exponential_backoff

from prefect_claim_dispatch import Action, Snooze, deployment_processor, processor
from prefect_claim_dispatch.errors import ConfigurationError, RegistrationError
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Isolation, Processor, Registry

NAN, ENDLESS, HUGE = float("nan"), float("inf"), 10**5_000

NO_DURATIONS: list[Any] = [True, "60", NAN, ENDLESS, -1, HUGE, timedelta(-1), timedelta.max, {}, [1], None.__class__]
NO_NUMBERS: list[Any] = [True, False, 2.5, "3", -1, NAN, [3], HUGE]


def nothing() -> None:
    """Does nothing."""


async def asynchronous(action: Action) -> dict[str, Any]:
    return dict(action.payload)


def yielding(action: Action) -> Any:
    yield action


def by_name_only(*, action: Action) -> dict[str, Any]:
    return dict(action.payload)


def two_arguments(action: Action, _other: object) -> dict[str, Any]:
    return dict(action.payload)


def no_delays(_retries: int) -> Any:
    return "no delays"


class Asynchronous:
    async def __call__(self, action: Action) -> dict[str, Any]:
        return dict(action.payload)


NO_FUNCTIONS: list[Any] = [
    {},
    "facts",
    True,
    asynchronous,
    functools.partial(asynchronous),
    Asynchronous(),
    yielding,
    by_name_only,
    two_arguments,
]

WRONG: dict[str, list[Any]] = {
    "max_attempts": [0, *NO_NUMBERS],
    "backoff": NO_DURATIONS,
    "backoff_max": NO_DURATIONS,
    "facts": NO_FUNCTIONS,
    "on_rules_false": [timedelta(hours=1), 60, True, "later"],
    "max_running": [0, *NO_NUMBERS],
    "registry": [None, {}, "mine"],
}
OF_FUNCTIONS: dict[str, list[Any]] = {
    "timeout": [0, 1e-9, *NO_DURATIONS],
    "linger": [0, 61, *NO_DURATIONS],
    "retries": NO_NUMBERS,
    "retry_delay_seconds": [
        *(True, "3", -1, NAN, ENDLESS, timedelta(seconds=1), {}, [], [1, "2"], [-1], [1] * 51, asynchronous),
        *(no_delays, nothing),
    ],
    "isolate": ["yes", 1, 0, {}, Isolation(memory_bytes=-1), Isolation(memory_bytes=True), Isolation],
    "rows_per_run": [0, *NO_NUMBERS],
    "concurrency_limit": [3, True, b"db", {"db": 1}, [3]],
}
OF_DEPLOYMENTS: dict[str, list[Any]] = {
    "lease": [0, *NO_DURATIONS],
    "queued_at_most": [0, *NO_DURATIONS],
    "parameters": NO_FUNCTIONS,
    "deployment": ["encode", 3, None, True, b"flow/name"],
}


def as_function(**options: Any) -> None:
    needed: dict[str, Any] = {"registry": Registry()} | ({"rows_per_run": 10} if "linger" in options else {})
    processor("a", **(needed | options))(nothing)


def as_task(**options: Any) -> None:
    given: dict[str, Any] = {"registry": Registry()} | options
    processor("a", **given)(task(nothing))


def as_flow(**options: Any) -> None:
    given: dict[str, Any] = {"registry": Registry()} | options
    processor("a", **given)(flow(nothing))


def as_deployment(**options: Any) -> None:
    given: dict[str, Any] = {"registry": Registry(), "deployment": "flow/name"} | options
    deployment_processor("a", **given)


@pytest.mark.parametrize(
    ("register", "wrong"),
    [
        (as_function, WRONG | OF_FUNCTIONS),
        (as_task, WRONG | {"timeout": OF_FUNCTIONS["timeout"]}),
        (as_flow, WRONG | {"timeout": OF_FUNCTIONS["timeout"]}),
        (as_deployment, WRONG | OF_DEPLOYMENTS),
    ],
)
def test_option_of_a_wrong_kind_is_refused_at_import(
    register: Callable[..., None], wrong: dict[str, list[Any]]
) -> None:
    """With the option, what it got and what it wants. Found at the first failure, it would stop rescue for all types.

    `True` is no number, and what is negative, endless or not a number is no duration.
    """
    for option, values in wrong.items():
        for value in values:
            try:
                register(**{option: value})
            except (RegistrationError, ConfigurationError) as error:
                refused = error
            else:
                pytest.fail(f"{option}={value!r} was taken")
            for told in ("processor 'a'", option, "must be", "got "):
                assert told in str(refused), (option, value, str(refused))
            assert str(pickle.loads(pickle.dumps(refused))) == str(refused)


@pytest.mark.parametrize("type_", [nothing, task(nothing), flow(nothing)], ids=["function", "task", "flow"])
def test_decorator_without_its_type_says_how_to_write_it(type_: Any) -> None:
    """`@processor` without parentheses is the first thing that one tries."""
    with pytest.raises(RegistrationError, match=r"write @processor\('email.welcome'\)"):
        processor(type_)


@pytest.mark.parametrize("type_", [None, 3, b"a", ["a"]], ids=repr)
def test_type_that_is_no_text_is_refused(type_: Any) -> None:
    """It could never be that of a row."""
    with pytest.raises(RegistrationError, match="printable characters"):
        processor(type_)


@pytest.mark.parametrize("source", [None, 3, "nothing", {}], ids=repr)
def test_what_can_not_be_called_is_no_processor(source: Any) -> None:
    """A decorator above it that forgot to return the function leaves None."""
    with pytest.raises(RegistrationError, match="a function, a Task or a Flow, got"):
        processor("a", registry=Registry())(source)


def test_time_limit_that_is_no_duration_in_a_tasks_own_decorator_is_refused() -> None:
    """Prefect takes it, and each call would fail."""
    for seconds in (float("nan"), float("inf"), -1):
        with pytest.raises(RegistrationError, match="timeout_seconds in the decorator of"):
            processor("a", registry=Registry())(task(timeout_seconds=seconds)(nothing))


def test_object_that_can_be_called_has_no_name_to_be_isolated_by() -> None:
    """A child process imports what it calls."""
    with pytest.raises(RegistrationError, match="can't be imported by its name"):
        processor("a", isolate=True, registry=Registry())(functools.partial(nothing))


def registered(**options: Any) -> Processor:
    registry = Registry()
    processor("a", registry=registry, **options)(nothing)
    found = registry.match("a")
    assert found is not None
    return found


@pytest.mark.parametrize("seconds", [90, 90.0, timedelta(seconds=90)])
def test_seconds_are_a_duration_as_prefect_has_it(seconds: Any) -> None:
    """Prefect's own `retry_delay_seconds` and `timeout_seconds` are numbers; whoever writes one here means that."""
    registry = Registry()
    deployment_processor("b", deployment="flow/name", lease=seconds, queued_at_most=seconds, registry=registry)
    elsewhere = registry.match("b")
    assert elsewhere is not None
    assert elsewhere.deployment is not None

    found = registered(backoff=seconds, backoff_max=seconds, timeout=seconds)
    policy = found.policy(RetryPolicy())

    wanted = timedelta(seconds=90)
    assert (policy.backoff, policy.backoff_max, found.time_limit) == (wanted, wanted, wanted)
    assert (elsewhere.deployment.lease, elsewhere.deployment.queued_at_most) == (wanted, wanted)


def test_right_options_of_every_kind_are_taken() -> None:
    """None means what the settings say, zero means at once, and a function may be any that can be called."""

    class Facts:
        def __call__(self, action: Action, *, more: int = 0) -> dict[str, Any]:
            return {"id": action.id, "more": more}

    def knows(_table: str, action: Action) -> dict[str, Any]:
        return {"id": action.id}

    found = registered(backoff=0, backoff_max=timedelta(0), max_attempts=1, retries=0, max_running=1)

    assert found.policy(RetryPolicy(backoff=timedelta(1))) == RetryPolicy(
        max_attempts=1, backoff=timedelta(0), backoff_max=timedelta(0)
    )
    assert registered(facts=None, on_rules_false=None, isolate=False, timeout=None).isolation is None
    functions: list[Any] = [Facts(), functools.partial(knows, "orders"), dict, vars]
    for facts in functions:
        assert registered(facts=facts).facts is facts
    assert registered(on_rules_false=Snooze(timedelta(hours=1))).on_rules_false == Snooze(timedelta(hours=1))
    assert registered(retries=2, retry_delay_seconds=[1, 2.5]).options.retry_delay_seconds == [1, 2.5]
    for retries in (None, 2):
        assert registered(retries=retries, retry_delay_seconds=exponential_backoff(3)).options.retries == retries
