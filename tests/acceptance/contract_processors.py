"""The dispatcher contract's cases as processors, for runs in other processes; each call adds a byte to a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prefect import task

from prefect_claim_dispatch import Action, processor
from tests.acceptance.test_dispatchers import CASES, ENDLESS_SECONDS, STYLES, Case, spin

FOLDER = "CONTRACT_CALLS"


def type_of(name: str, style: str) -> str:
    """The type of that case's row."""
    return f"contract.{style}.{name}"


def called(action: Action) -> int:
    """Note a call; how many there were."""
    with (Path(os.environ[FOLDER]) / str(action.id)).open("ab") as file:
        file.write(b".")
        return file.tell()


def _sync(case: Case) -> Callable[..., Any]:
    def work(action: Action) -> Any:
        return case.behave(called(action))

    return work


def _async(case: Case) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def work(action: Action) -> Any:
        calls = called(action)
        await asyncio.sleep(ENDLESS_SECONDS if case.behave is spin else 0)
        return case.behave(calls)

    return work


for name, case in CASES.items():
    for style in STYLES:
        function = (_async if style == "async" else _sync)(case)
        # As if written here one by one: by its name it is found in any process.
        function.__qualname__ = f"{style}_{''.join(filter(str.isalnum, name))}"
        globals()[function.__qualname__] = function
        processor(type_of(name, style), timeout=case.timeout)(task(retries=case.retries)(function))
