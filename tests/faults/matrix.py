"""The failpoint matrix: every statement of every act, struck in every way, on both databases.

``python -m tests.faults.matrix`` runs it and prints the table; exit code 1 unless every cell passed or says why there
is none.
"""

from __future__ import annotations

import ast
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tests.faults.acts import ACTS
from tests.kit.processes import ROOT

Fault = Literal["SIGKILL", "exception", "cut before", "cut after COMMIT"]
FAULTS: Final[tuple[Fault, ...]] = ("SIGKILL", "exception", "cut before", "cut after COMMIT")
DIALECTS: Final = ("sqlite", "postgresql")
MOMENTS: Final = ("before", "after", "after-commit")
CASES: Final = (
    "tests/faults/test_matrix.py",
    "tests/faults/test_claim_flows.py::test_flow_killed_at_a_statement_loses_nothing",
)
TEST: Final = "test_nothing_is_lost_or_done_twice_when_struck"

NO_CONNECTION: Final = "SQLite has no connection to cut; SIGKILL before the statement stands there"
NOTHING_WRITTEN: Final = "SQLite's COMMIT of a reading transaction writes nothing in which it could die"
NOT_SENT: Final = "not sent on this database"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """*statement* of *act* is struck by *fault* at *moment*; on SQLite, ``in-commit`` stands for the lost answer."""

    act: str
    statement: str
    dialect: str
    fault: Fault
    moment: str

    def __str__(self) -> str:
        return ", ".join((self.act, self.statement, self.dialect, self.fault, self.moment))


def boundaries() -> list[tuple[str, str]]:
    """The rows of the table: each act with each of its statements, on either database."""
    return [
        (name, statement) for name, act in ACTS.items() for statement in dict.fromkeys((*act.postgresql, *act.sqlite))
    ]


def moments(act: str, statement: str, dialect: str, fault: Fault) -> tuple[str, ...] | str:
    """When that fault can strike there; or why it can't."""
    if statement not in ACTS[act].statements(dialect):
        return NOT_SENT
    match fault:
        case "SIGKILL" | "exception":
            # Where no COMMIT is sent, the statement's own end is the moment after it.
            return MOMENTS[:2] if dialect == "postgresql" and ACTS[act].commits_each else MOMENTS
        case "cut before":
            return NO_CONNECTION if dialect == "sqlite" else ("before",)
        case "cut after COMMIT":
            if dialect == "postgresql":
                return ("in-commit",)
            return ("in-commit",) if ACTS[act].changes else NOTHING_WRITTEN


def cells() -> list[Cell]:
    """All that must be run."""
    return [
        Cell(act, statement, dialect, fault, moment)
        for act, statement in boundaries()
        for dialect in DIALECTS
        for fault in FAULTS
        for moment in _tuple(moments(act, statement, dialect, fault))
    ]


def _tuple(found: tuple[str, ...] | str) -> tuple[str, ...]:
    return () if isinstance(found, str) else found


def statement_names(folder: Path) -> dict[str, set[str]]:
    """The names of the statements that each public function of a statement in *folder* builds.

    Read from the source: a function that nobody calls yet, or that names nothing, is found too.
    """
    found: dict[str, set[str]] = {}
    for file in sorted(folder.glob("*.py")):
        functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        by_name = {function.name: function for function in functions}
        for function in functions:
            if not function.name.startswith("_") and _builds_statement(function):
                found[f"{file.stem}.{function.name}"] = set(_names(function, by_name))
    return found


def _builds_statement(function: ast.FunctionDef) -> bool:
    kind = ast.unparse(function.returns) if function.returns else ""
    return kind.partition("[")[0] in ("Update", "UpdateBase", "Insert", "Delete", "Select", "CompoundSelect")


def _names(function: ast.FunctionDef, others: dict[str, ast.FunctionDef]) -> Iterator[str]:
    for node in ast.walk(function):
        match node:
            case ast.Dict(keys=[ast.Name(id="NAME")], values=[ast.Constant(value=str(name))]):
                yield name
            case ast.Call(func=ast.Name(id=called), args=[*_, ast.Constant(value=str(name))]) if _is_named(
                others.get(called)
            ):
                yield name


def _is_named(function: ast.FunctionDef | None) -> bool:
    """Whether *function* puts its last argument as the name."""
    if function is None or not function.args.args:
        return False
    last = function.args.args[-1].arg
    return any(isinstance(node, ast.Dict) and ast.unparse(node) == f"{{NAME: {last}}}" for node in ast.walk(function))


class Results:
    """A pytest plugin that remembers what became of each cell."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.others: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest, in the controlling process too."""
        name, _, cell = report.nodeid.rpartition("::")[2].partition("[")
        if report.when != "call" and report.outcome == "passed":
            return
        if name == TEST:
            known = self.outcomes.get(cell[:-1])
            self.outcomes[cell[:-1]] = report.outcome if known in (None, "passed") else known
        else:
            self.others[report.outcome] += 1


def main() -> int:
    """Run the matrix, print it, and say whether it is full and passed."""
    import pytest

    results, began_at = Results(), time.monotonic()
    arguments = ["-q", "-n", "2", "--no-header", "-p", "no:randomly", *CASES, *sys.argv[1:]]
    os.chdir(ROOT)
    code = pytest.main(arguments, plugins=[results])
    wanted = [str(cell) for cell in cells()]
    print_table(results.outcomes)
    passed = sum(results.outcomes.get(cell) == "passed" for cell in wanted)
    seconds = time.monotonic() - began_at
    print(f"{passed} of {len(wanted)} cells passed, of {len(boundaries())} boundaries, in {seconds:.0f} s")
    print(f"beside them: {', '.join(f'{number} {outcome}' for outcome, number in results.others.items()) or 'nothing'}")
    return 0 if passed == len(wanted) and code == 0 else 1


def print_table(outcomes: dict[str, str]) -> None:
    """The table with a mark for each moment, and the reasons why some have none."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Failpoint matrix", header_style="bold", row_styles=("", "dim"))
    table.add_column("act")
    table.add_column("statement")
    for dialect in DIALECTS:
        for fault in FAULTS:
            name = "killed in COMMIT" if (dialect, fault) == ("sqlite", "cut after COMMIT") else fault
            table.add_column(f"{dialect}\n{name}", justify="center")
    reasons: dict[str, list[str]] = defaultdict(list)
    previous = ""
    for act, statement in boundaries():
        marks = [
            _mark(Cell(act, statement, dialect, fault, ""), outcomes, reasons)
            for dialect in DIALECTS
            for fault in FAULTS
        ]
        table.add_row("" if act == previous else act, statement, *marks)
        previous = act
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print("marks: before, after, after COMMIT; [green]✓[/] passed, [red]✗[/] failed, [red]?[/] not run")
    for number, (reason, where) in enumerate(reasons.items(), start=1):
        console.print(f"- {number}: {reason} ({len(where)} cells)")


def _mark(place: Cell, outcomes: dict[str, str], reasons: dict[str, list[str]]) -> str:
    found = moments(place.act, place.statement, place.dialect, place.fault)
    if isinstance(found, str):
        reasons[found].append(str(place))
        return f"- {list(reasons).index(found) + 1}"
    return "".join(_signs(place, found, outcomes))


def _signs(place: Cell, found: Iterable[str], outcomes: dict[str, str]) -> Iterator[str]:
    for moment in found:
        cell = Cell(place.act, place.statement, place.dialect, place.fault, moment)
        outcome = outcomes.get(str(cell))
        yield {"passed": "[green]✓[/]", None: "[red]?[/]"}.get(outcome, "[red]✗[/]")


if __name__ == "__main__":
    sys.exit(main())
