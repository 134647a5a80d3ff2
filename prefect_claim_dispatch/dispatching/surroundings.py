"""What an isolated child is given of the run that it works for: its context, its settings, and how logging is set up.

So `get_run_logger`, `prefect.runtime`, `print` under `log_prints`, and tasks that a processor calls in turn, do there
what they do in a thread of the flow. Not by Prefect's own serialized context: that takes 40 ms of each attempt.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from prefect import Flow, Task
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, SettingsContext, TagsContext, TaskRunContext, get_settings_context, tags
from prefect.events.worker import EventsWorker
from prefect.logging.loggers import patch_print
from prefect.results import ResultStore
from prefect.settings import Settings
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_claim_dispatch.dispatching.records import Levels

EVENTS_SECONDS: Final = 5.0
"""So long a child waits, at its end, for what Prefect has yet to hear of tasks that the processor called."""


def _stand_in() -> None:
    """What the flow does, as far as its run's context needs to know."""


_FLOW: Final = Flow[..., Any](fn=_stand_in, name="claim-dispatch")
_TASK: Final = Task[..., Any](fn=_stand_in, name="claim-dispatch")
"""Made once, in the template: to make a flow takes longer than most of what a child does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """A run, of a flow or a task, as far as it goes along: the author's code and what it refers to do not."""

    run: Any
    name: str
    log_prints: bool
    persist_result: bool

    @property
    def options(self) -> dict[str, Any]:
        """The fields that the contexts of flows and tasks have in common."""
        return {
            "log_prints": self.log_prints,
            "result_store": ResultStore(),  # the flow's own may hold what can't go along
            "persist_result": self.persist_result,
            "parameters": {},
            "client": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where an attempt is made; *settings* are Prefect's, pickled, None where a new process has the same."""

    levels: Levels
    flow: Within | None
    task: Within | None
    tags: frozenset[str]
    settings: bytes | None

    @classmethod
    def here(cls) -> Surroundings:
        """Those of the current run, if there is one."""
        flow, task, labels = FlowRunContext.get(), TaskRunContext.get(), TagsContext.get()
        return cls(
            levels=Levels.here(),
            flow=None if flow is None else _within(flow, flow.flow_run, flow.flow),
            task=None if task is None else _within(task, task.task_run, task.task),
            tags=frozenset(labels.current_tags),
            settings=_settings(),
        )

    @contextmanager
    def entered(self) -> Generator[None]:
        """Let this process have them."""
        with ExitStack() as stack:
            if self.settings is not None:
                profile, settings = pickle.loads(self.settings)  # noqa: S301 - of our own process
                stack.enter_context(SettingsContext.model_construct(profile=profile, settings=settings))
            if self.tags:
                stack.enter_context(tags(*self.tags))
            if self.flow is not None:
                stack.enter_context(_flow_context(self.flow, stack.enter_context(ThreadPoolTaskRunner[Any]())))
            if self.task is not None:
                stack.enter_context(_task_context(self.task))
            if any(within is not None and within.log_prints for within in (self.flow, self.task)):
                stack.enter_context(patch_print())
            try:
                yield
            finally:
                # The process ends without another word, and with it what waits to be sent.
                EventsWorker.drain_all(timeout=EVENTS_SECONDS)


def _within(context: FlowRunContext | TaskRunContext, run: FlowRun | TaskRun | None, of: Any) -> Within:
    return Within(
        run=run,
        name="claim-dispatch" if of is None else of.name,
        log_prints=context.log_prints,
        persist_result=context.persist_result,
    )


def _flow_context(within: Within, runner: ThreadPoolTaskRunner[Any]) -> FlowRunContext:
    flow = copy.copy(_FLOW)
    flow.name = within.name
    # Constructed, since to validate a client means to have one, and few processors ever ask Prefect.
    return FlowRunContext.model_construct(
        flow=flow, flow_run=within.run, task_runner=runner, detached=True, **within.options
    )


def _task_context(within: Within) -> TaskRunContext:
    task = copy.copy(_TASK)
    task.name = within.name
    return TaskRunContext.model_construct(task=task, task_run=within.run, **within.options)


_known: tuple[Any, bytes | None] | None = None


def _settings() -> bytes | None:
    """The current settings, if they are not those of the environment; asked once while they stay the same."""
    global _known  # noqa: PLW0603 - a process has few
    context, known = get_settings_context(), _known
    if known is None or known[0] is not context.settings:
        is_usual = context.settings == Settings()
        known = _known = context.settings, None if is_usual else pickle.dumps((context.profile, context.settings))
    return known[1]
