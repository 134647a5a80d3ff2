"""`print` under Prefect's `log_prints`, where several runs of a process have it at a time."""

from __future__ import annotations

import builtins
from contextlib import ExitStack

import pytest
from prefect import task
from prefect.logging.loggers import patch_print, print_as_log

from prefect_claim_dispatch.dispatching.dispatchers import RoutingDispatcher
from prefect_claim_dispatch.dispatching.runs import Desk
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.processors import Registry, processor


def test_print_is_logged_whichever_run_ends_first() -> None:
    """Prefect's `log_prints` puts back what a run found: of two that overlap, the first to end would take it away."""
    before = builtins.print

    with RoutingDispatcher(1), ExitStack() as second:
        with patch_print():
            second.enter_context(patch_print())
        assert builtins.print is print_as_log

    assert builtins.print is before


@pytest.mark.parametrize("log_prints", [True, False, None])
def test_function_says_whether_its_prints_are_logged(log_prints: bool | None) -> None:
    """None leaves it to Prefect's setting, as a decorator of its own does."""
    registry = Registry()
    processor("x", log_prints=log_prints, registry=registry)(print)
    known = registry.match("x")
    assert known is not None

    assert Desk().task_for(known).log_prints is log_prints


def test_task_says_in_its_own_decorator_whether_its_prints_are_logged() -> None:
    """Where else it would be said twice."""

    @task(log_prints=True)
    def work() -> None: ...

    with pytest.raises(RegistrationError, match="log_prints into the task's or flow's own decorator"):
        processor("x", log_prints=True, registry=Registry())(work)
