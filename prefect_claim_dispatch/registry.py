"""Processors by type."""

from __future__ import annotations

import threading
from typing import Any

from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.patterns import WILDCARD, matching
from prefect_claim_dispatch.registrations import Processor


class Registry:
    """Processors by type. Exact beats pattern, the longest pattern wins; two for the same type are refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exact: dict[str, Processor] = {}
        self._patterns: dict[str, Processor] = {}

    def __reduce__(self) -> str | tuple[Any, ...]:
        """The default one by its name; another as its processors: a lock can't be pickled.

        `claim_dispatch.serve(...)` pickles the flow together with what its function names, and this is among it. A copy
        would miss what the modules of processors register where it arrives.
        """
        if self is registry:
            return "registry"
        return _restored, (dict(self._exact), dict(self._patterns))

    def add(self, processor: Processor) -> None:
        """Register *processor*. The same function from the same place again, as after a reload, replaces itself.

        Raises:
            RegistrationError: the type is taken, with both places named.
        """
        with self._lock:
            known = self._patterns if WILDCARD in processor.pattern else self._exact
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
        patterns = matching(self._patterns, type_)
        return self._patterns[max(patterns, key=lambda pattern: (len(pattern), pattern))] if patterns else None

    def get(self, pattern: str) -> Processor | None:
        """The processor that was registered as *pattern* itself."""
        return self._exact.get(pattern) or self._patterns.get(pattern)

    def check(self) -> None:
        """Find what is wrong with a processor before anything is claimed; see `Processor.check`."""
        for known in (*self._exact.values(), *self._patterns.values()):
            known.check()

    @property
    def isolated_modules(self) -> tuple[str, ...]:
        """The modules of all isolated processors, sorted: what a child process needs to have imported."""
        known = (*self._exact.values(), *self._patterns.values())
        return tuple(sorted({one.function.__module__ for one in known if one.isolation is not None}))

    @property
    def deployed(self) -> tuple[Processor, ...]:
        """Those whose actions become runs of a deployment, by type."""
        known = sorted((*self._exact.values(), *self._patterns.values()), key=lambda one: one.pattern)
        return tuple(one for one in known if one.deployment is not None)

    @property
    def concurrency_limits(self) -> tuple[str, ...]:
        """The names of all concurrency limits that processors ask for, sorted."""
        known = (*self._exact.values(), *self._patterns.values())
        return tuple(sorted({name for one in known for name in one.concurrency_limits}))

    @property
    def handed_over(self) -> tuple[Processor, ...]:
        """Those whose runs are the task runner's, in whatever process that has them; by type.

        Subflows and isolated ones are not: those are followed from the claim flow's process.
        """
        known = sorted((*self._exact.values(), *self._patterns.values()), key=lambda one: one.pattern)
        return tuple(one for one in known if one.is_handed_over)

    @property
    def types(self) -> tuple[str, ...]:
        """All types and patterns that are registered, sorted."""
        return tuple(sorted([*self._exact, *self._patterns]))


def _restored(exact: dict[str, Processor], patterns: dict[str, Processor]) -> Registry:
    """A registry of these; what `Registry` is pickled as."""
    made = Registry()
    made._exact, made._patterns = exact, patterns  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - its own module
    return made


registry = Registry()
"""Where `@processor` registers unless told otherwise."""
