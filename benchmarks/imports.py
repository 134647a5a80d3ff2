"""What an application that only publishes waits for when it imports this package, beside what it imports anyway.

An application that publishes has SQLAlchemy and pydantic, so the time of importing us is set against importing those:

- *application*: ``import sqlalchemy.orm, pydantic`` and ``from pydantic import BaseModel``, as its models do: the bare
  packages are lazy, and load neither the ORM nor pydantic's models;
- *bare*: ``import sqlalchemy, pydantic``, which nobody stops at, and which flatters nobody.

A side is the processor's time for the whole import in a fresh interpreter, its start not counted: an import waits for
nothing, and other processes disturb that time less. The sides take turns, every other round in the opposite order;
ratios are medians of the rounds' own. The goal is 1.5 of *application*.

Unfair to read into it: an application's own cost. One that has imported SQLAlchemy and pydantic waits for the rest
only, which *beside them* is, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import kit

APPLICATION = "import sqlalchemy.orm, pydantic; from pydantic import BaseModel"
SIDES = {
    "bare": "import sqlalchemy, pydantic",
    "application": APPLICATION,
    "package": "import prefect_claim_dispatch",
    "publishing": "from prefect_claim_dispatch import publish, Publisher",
}
GOALS = [
    kit.Goal(figure="of application", at_most=1.5, of={"import": SIDES[name]}) for name in ("package", "publishing")
]
TIMED = "import time; began = time.process_time(); {code}; print(time.process_time() - began)"
LATE = f"{APPLICATION}; {TIMED.format(code=SIDES['publishing'])}"


def main() -> None:
    """Measure and show."""
    options = parsed()
    programs = {name: TIMED.format(code=code) for name, code in SIDES.items()} | {"late": LATE}
    sides: dict[str, Callable[[], float]] = {name: lambda code=code: seconds(code) for name, code in programs.items()}
    for program in programs.values():
        seconds(program)  # so that nobody compiles bytecode
    measured = kit.rates(sides, options.rounds)
    results = [
        {
            "import": SIDES[name],
            "ms": statistics.median(measured[name]) * 1000,
            "of application": kit.ratio(measured, name, "application"),
            "of bare": kit.ratio(measured, name, "bare"),
            "beside them, ms": statistics.median(measured["late"]) * 1000 if name == "publishing" else None,
        }
        for name in SIDES
    ]
    kit.show("imports in a fresh interpreter", results, options, labels=["import"], goals=GOALS)


def parsed() -> argparse.Namespace:
    """The options; more rounds than elsewhere, since each takes a second and single ones scatter."""
    options = kit.parser(__doc__)
    options.set_defaults(rounds=11)
    return options.parse_args()


def seconds(program: str) -> float:
    """What a fresh interpreter prints for *program*."""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, cwd=kit.ROOT
    )
    return float(run.stdout)


if __name__ == "__main__":
    main()
