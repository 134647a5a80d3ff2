"""What the benchmarks share: a PostgreSQL of their own, sides that take turns, ratios, a table."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PEER = "peer"


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
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return float(finished.stdout.split()[-1])


def rates(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Rows a second of each side, one figure a round; every other round in the opposite order."""
    measured: dict[str, list[float]] = {side: [] for side in sides}
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
    if other not in measured:
        return None
    return statistics.median(a / b for a, b in zip(measured[side], measured[other], strict=True))


def show(title: str, results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """One table, ratios last."""
    console = Console(width=130)
    shown = Table(title=title)
    for column in results[0]:
        shown.add_column(column, justify="right")
    for result in results:
        shown.add_row(*(_cell(value) for value in result.values()))
    console.print(shown)
    if not options.peer_python:
        console.print("peers were not measured: no --peer-python")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        case _:
            return f"{value:,}" if isinstance(value, int) else str(value)
