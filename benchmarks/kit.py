"""What the benchmarks share: a PostgreSQL of their own, sides that take turns, ratios, goals, a table."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PEER = "peer"
PEER_SECONDS = 900
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What *figure* should be, `at_least` or `at_most`, in the results that have the values in *of*."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    of: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def concerns(self, result: Mapping[str, Any], figure: str) -> bool:
        """Whether *figure* of *result* is meant."""
        return figure == self.figure and all(result.get(key) == value for key, value in self.of.items())

    def is_reached(self, value: float) -> bool:
        """Whether *value* is good enough."""
        if self.at_least is not None and value < self.at_least:
            return False
        return self.at_most is None or value <= self.at_most


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks know."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--scale", type=float, default=1.0, help="share of the usual number of rows")
    options.add_argument(
        "--peer-python", help="Python of an environment with benchmarks/peers.txt; without it no peer is measured"
    )
    options.add_argument("--json", type=Path, help="write the results here as well")
    return options


@contextmanager
def postgresql() -> Generator[str]:
    """The address of a server from the wheel, with its default settings, fsync on; it goes with the block."""
    sys.path.insert(0, str(ROOT))
    from tests.kit import postgres

    folder = Path(tempfile.mkdtemp(prefix="pcd-bench-"))
    try:
        server = postgres.start("postgresql-18", folder / "pg", durable=True)
        yield f"postgresql://postgres@/postgres?host={server.sockets}"
    finally:
        postgres.discard(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)


def peer_seconds(python: str, script: str, dsn: str, *arguments: object) -> float:
    """What *script*, run by the peer's own Python on an empty database, prints last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {PEER} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {PEER}")
    path = str(Path(__file__).with_name(script))
    command = [python, path, dsn.replace("/postgres?", f"/{PEER}?"), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_SECONDS)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return float(finished.stdout.split()[-1])


def has_peer(python: str | None, module: str) -> bool:
    """Whether the peers' environment has *module*: one of them wants a newer Python than others."""
    return bool(python) and not subprocess.run([python, "-c", f"import {module}"], check=False, timeout=60).returncode


def rates(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each side measured, a rate mostly, once a round; every other round in the opposite order."""
    measured: dict[str, list[T]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            measured[side].append(sides[side]())
    return measured


def figures(
    measured: Mapping[str, list[float]], sides: Sequence[str], ratios: Sequence[tuple[str, str]]
) -> dict[str, float | None]:
    """Medians of *sides*, and of the *ratios* of two of them; None for what was not measured."""
    medians = {side: median(measured, side) for side in sides}
    return medians | {f"{side}/{other}": ratio(measured, side, other) for side, other in ratios}


def median(measured: Mapping[str, list[float]], side: str) -> float | None:
    """The median rate of *side*, None when it was not measured."""
    return statistics.median(measured[side]) if side in measured else None


def ratio(measured: Mapping[str, list[float]], side: str, other: str) -> float | None:
    """The median of the rounds' own ratios."""
    if side not in measured or other not in measured:
        return None
    pairs = list(zip(measured[side], measured[other], strict=True))
    return statistics.median(a / b for a, b in pairs) if all(b for _, b in pairs) else None


def lines(
    results: Sequence[Mapping[str, Any]], labels: Sequence[str], goals: Sequence[Goal]
) -> Iterator[dict[str, Any]]:
    """Each ratio of two sides, and each figure that has a goal, as a line of the table of all benchmarks."""
    for result in results:
        what = ", ".join(f"{label} {cell(result[label])}".strip() for label in labels)
        for figure, value in result.items():
            goal = next((goal for goal in goals if goal.concerns(result, figure)), None)
            sides = [side for side in figure.split("/") if side in result] if "/" in figure else []
            if goal is None and len(sides) != 2:
                continue
            is_reached = None if goal is None or value is None else goal.is_reached(value)
            yield {
                "what": what,
                "figure": figure,
                "sides": {side: result[side] for side in sides},
                "value": value,
                "goal": None if goal is None else str(goal),
                "reached": is_reached,
            }


def show(
    title: str,
    results: list[dict[str, Any]],
    options: argparse.Namespace,
    *,
    labels: Sequence[str] = (),
    goals: Sequence[Goal] = (),
) -> None:
    """One table, ratios last, and what was missed of *goals*; as JSON too, where that is wanted.

    *labels*: the columns that say what a result is of.
    """
    console = Console(width=130)
    shown = Table(title=title)
    for column in results[0]:
        shown.add_column(column, justify="right")
    for result in results:
        shown.add_row(*(cell(value) for value in result.values()))
    console.print(shown)
    told = list(lines(results, labels, goals))
    for line in told:
        if line["reached"] is not None:
            verdict = "reached" if line["reached"] else "missed"
            console.print(f"{line['what']}: {line['figure']} {cell(line['value'])}, goal {line['goal']}, {verdict}")
    if options.json:
        document = {
            "benchmark": Path(sys.argv[0]).stem,
            "title": title,
            "rounds": options.rounds,
            "scale": options.scale,
            "results": results,
            "lines": told,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def cell(value: Any) -> str:
    """*value* as a table has it."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        case _:
            return f"{value:,}" if isinstance(value, int) else str(value)
