"""EXPLAIN as something to assert on: the nodes of a plan, and what they did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from psycopg import sql
from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

PlanCache = Literal["force_custom_plan", "force_generic_plan"]
TABLE = "action_logs"


@dataclass(slots=True)
class Node:
    """One node of an executed plan; *parents* come from the top."""

    facts: dict[str, Any]
    # Not in the repr: each node would show its parents, who show their children, for minutes.
    parents: tuple[Node, ...] = field(default=(), repr=False)
    children: list[Node] = field(default_factory=list["Node"], repr=False)

    @property
    def kind(self) -> str:
        return str(self.facts["Node Type"])

    @property
    def index(self) -> str | None:
        return self.facts.get("Index Name")

    @property
    def is_executed(self) -> bool:
        return self.facts["Actual Loops"] > 0

    @property
    def is_scan(self) -> bool:
        """It reads the table or one of its indexes itself."""
        return self.kind.endswith("Scan") and (self.facts.get("Relation Name") == TABLE or self.index is not None)

    @property
    def rows_touched(self) -> float:
        """Rows that came out of it, and rows that it looked at in vain."""
        names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        return self.facts["Actual Loops"] * sum(self.facts.get(name, 0) for name in names)

    @property
    def rows_in(self) -> float:
        """What its children handed to it."""
        return sum(child.facts["Actual Rows"] * child.facts["Actual Loops"] for child in self.children)


@dataclass(slots=True)
class Plan:
    """An executed plan."""

    text: str = field(repr=False)
    nodes: list[Node] = field(repr=False)

    @property
    def scans(self) -> list[Node]:
        return [node for node in self.nodes if node.is_scan]

    @property
    def indexes(self) -> set[str]:
        """The indexes that were used, without the table's name."""
        return {
            str(node.index).replace(f"_{TABLE}", "").replace(TABLE, "")
            for node in self.scans
            if node.index and node.is_executed
        }

    @property
    def rows_touched(self) -> float:
        # A bitmap's rows are counted where they are fetched: its index gives entries, dead ones too.
        return sum(node.rows_touched for node in self.scans if node.kind != "Bitmap Index Scan")

    @property
    def buffers(self) -> int:
        """Pages that it looked at, of table and indexes, each time that it did."""
        facts = self.nodes[0].facts
        return int(facts["Shared Hit Blocks"] + facts["Shared Read Blocks"])

    @property
    def cost(self) -> str:
        """What it took, for people."""
        milliseconds = self.nodes[0].facts["Actual Total Time"]
        return f"{self.rows_touched:.0f} rows touched, {self.buffers} buffers, {milliseconds:.1f} ms"

    def kinds(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes if node.kind in kinds and node.is_executed]


def explained(
    connection: psycopg.Connection, statement: Executable, parameters: dict[str, Any], cache: PlanCache
) -> Plan:
    """Execute *statement* as a prepared statement with that kind of plan, roll back, and answer the plan."""
    text, names = _with_numbers(statement)
    parameters = {**_defaults(statement), **parameters}
    cursor = psycopg.ClientCursor(connection)
    arguments: Sequence[Any] = [parameters[name] for name in names]
    cursor.execute(sql.SQL("SET plan_cache_mode = {}").format(sql.Identifier(cache)))
    cursor.execute(f"PREPARE explained AS {text}")
    call = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, arguments))) if names else sql.SQL("")
    cursor.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained") + call)
    (document,) = cursor.fetchone() or ([],)
    connection.rollback()
    cursor.execute("DEALLOCATE ALL")
    connection.commit()
    return Plan(text=json.dumps(document, indent=1), nodes=list(_walk(document[0]["Plan"], ())))


def _walk(facts: dict[str, Any], parents: tuple[Node, ...]) -> Iterator[Node]:
    node = Node(facts=facts, parents=parents)
    if parents:
        parents[-1].children.append(node)
    yield node
    for child in facts.get("Plans", ()):
        yield from _walk(child, (*parents, node))


def _with_numbers(statement: Executable) -> tuple[str, list[str]]:
    """The SQL with ``$1, $2, ...`` for its parameters, and their names in that order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    compiled = str(statement.compile(dialect=PGDialect_psycopg()))  # pyright: ignore[reportAttributeAccessIssue] - a ClauseElement
    return re.sub(r"%\((\w+)\)s", number, compiled).replace("%%", "%"), names


def _defaults(statement: Executable) -> dict[str, Any]:
    return dict(statement.compile(dialect=PGDialect_psycopg()).params)  # pyright: ignore[reportAttributeAccessIssue] - a ClauseElement
