"""What a dispatcher hands to Prefect is forgotten when its run is done."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed

from prefect_claim_dispatch.dispatching.dispatchers import once


class Run:
    """Stands for a batch and all its rows."""


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """No garbage collection comes to help."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_run_is_freed_by_its_last_reference() -> None:
    """Prefect's futures are cycles; what hangs on them would wait for a collection with thousands of rows."""
    ended: list[str] = []
    wrapped, run = Future[Any](), Run()
    future, freed = PrefectConcurrentFuture[Any](uuid4(), wrapped), weakref.ref(run)
    work: Any = run
    future.add_done_callback(once(work, lambda _run, name: ended.append(name), lambda _done, _run: "Completed"))

    wrapped.set_result(Completed())
    del run, work, future, wrapped

    assert ended == ["Completed"]
    assert freed() is None
