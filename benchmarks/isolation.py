"""Isolation: what a child process costs an attempt.

- *isolated*: calls of a processor that does nothing, each in a child of its own; against *plain*, the same called here.

Calls a second, of one thread, after one that starts the template.

What would be unfair to read into it: a real flow pays for Prefect's run on both sides, and several children overlap.
How large the template is decides: a child of a processor whose module imports more costs more.
Each round runs both sides, every other one in the opposite order; medians count. No database.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kit

from prefect_claim_dispatch import Isolation
from prefect_claim_dispatch.dispatching.isolation import call
from prefect_claim_dispatch.processors import Processor

CALLS = 50
ISOLATION = Isolation()


def nothing() -> None: ...


def timed(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return calls / (time.perf_counter() - began)


def main() -> None:
    """Measure both sides."""
    options = kit.parser(__doc__).parse_args()
    calls = max(10, int(CALLS * options.scale))
    # By its importable name, as a child finds it: here the module is __main__.
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    import isolation

    empty = Processor(pattern="x", source=isolation.nothing, place="here", isolation=ISOLATION)
    call(empty, ISOLATION, {})
    sides: dict[str, Callable[[], float]] = {
        "isolated": lambda: timed(lambda: call(empty, ISOLATION, {}), calls),
        "plain": lambda: timed(isolation.nothing, calls * 1_000),
    }
    rates = kit.rates(sides, options.rounds)
    costs = {"ms, isolated": statistics.median(1_000 / rate for rate in rates["isolated"])}
    results = [{"processor": "nothing"} | kit.figures(rates, tuple(sides), []) | costs]
    kit.show("isolation: calls a second, and what one costs (medians)", results, options, labels=["processor"])


if __name__ == "__main__":
    main()
