"""How the actions of a batch ended, as an artifact of its run, sent by a thread that no run waits for."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import httpx

from prefect_claim_dispatch.dispatching.batches import Batch, end_of
from prefect_claim_dispatch.dispatching.flow_runs import api
from prefect_claim_dispatch.dispatching.grouping import RunBudget
from prefect_claim_dispatch.errors import PrefectUnavailableError
from prefect_claim_dispatch.outcomes import redacted

logger = logging.getLogger(__name__)

MOST_WAITING: Final = 100
"""Artifacts that wait to be sent; with a server that is slower than that, the newest are left out."""

PER_SECOND: Final = 2
"""Artifacts of batches in which all went well: each costs the server as much as a task run, and a flood has dozens."""

END_SECONDS: Final = 5.0
"""So long the end of a flow waits for those that are on their way."""

TOLD_RANGES: Final = 100
"""Ranges of ids in one line of the table, at most."""


class Artifacts:
    """Sends the artifacts of batches; one that can't be sent is left out, with a line in the log.

    The table says what happened to each action, so no run is held up, and none fails, for its artifact.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._budget = RunBudget(PER_SECOND)
        self._thread: threading.Thread | None = None
        self._is_given_up = False

    def tell(self, batch: Batch, *, task_run_id: str) -> None:
        """Have it told on the page of the task run how the actions of *batch*, if there are several, ended.

        Left out where all went well and many others did in this second: its name and log say the same. Does not wait.
        Call it in the context of the run, for its settings.
        """
        if len(batch.works) < 2:  # noqa: PLR2004 - one has its own page
            return
        with self._lock:
            if self._budget.left < 1 and not batch.failed:
                return
            self._budget.spend(1)
        document = {
            "type": "markdown",
            "description": batch.summary,
            "data": as_markdown(batch),
            "task_run_id": task_run_id,
        }
        try:
            self._waiting.put_nowait(document)
        except queue.Full:
            logger.warning("%s: its artifact is left out, %s wait already", batch.reference.name, MOST_WAITING)
            return
        with self._lock:
            if self._thread is None:
                run = contextvars.copy_context().run
                self._thread = threading.Thread(
                    target=run, args=(self._send_all,), name="claim-dispatch-artifacts", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Wait for what is on its way, `END_SECONDS` at most; what is not sent by then is left out."""
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        with suppress(queue.Full):
            self._waiting.put(None, timeout=END_SECONDS)
            thread.join(END_SECONDS)
        self._is_given_up = True

    def _send_all(self) -> None:
        try:
            with api() as client:
                while (document := self._waiting.get()) is not None and not self._is_given_up:
                    try:
                        client.request("POST", "/artifacts/", json=document)
                    except (httpx.HTTPError, RuntimeError) as error:
                        _tell_lost(error)
        except PrefectUnavailableError as error:
            _tell_lost(error)
        finally:
            with self._lock:
                self._thread = None  # the next one has another try


def as_markdown(batch: Batch) -> str:
    """A table: of each type and end how many, and their ids. No payload, and no error's text."""
    ids: dict[tuple[str, str], list[int]] = defaultdict(list)
    for work in batch.works:
        ids[work.action.type, end_of(work)].append(work.action.id)
    rows = [f"| {_escaped(type_)} | {ended} | {len(of)} | {ranges(of)} |" for (type_, ended), of in sorted(ids.items())]
    return "\n".join(["| type | ended | actions | ids |", "| --- | --- | ---: | --- |", *rows, ""])


def ranges(ids: Iterable[int]) -> str:
    """*ids* in order, those that follow one another as one range: ``#1 to #3, #7``."""
    spans: list[list[int]] = []
    for id_ in sorted(ids):
        if spans and id_ == spans[-1][1] + 1:
            spans[-1][1] = id_
        else:
            spans.append([id_, id_])
    told = [f"#{first}" if first == last else f"#{first} to #{last}" for first, last in spans[:TOLD_RANGES]]
    more = sum(last - first + 1 for first, last in spans[TOLD_RANGES:])
    return ", ".join(told) + (f" and {more:,} more" if more else "")


def _escaped(type_: str) -> str:
    """Anybody may insert a row, of any type."""
    return "`" + type_.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def _tell_lost(error: Exception) -> None:
    logger.warning("the artifact of a batch could not be sent (%s)", redacted(str(error), 200))
