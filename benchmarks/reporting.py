"""What all benchmarks came to: one table, one drawing, and the table of costs in the processor author's guide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kit
import plotting
from rich.console import Console
from rich.table import Table

GUIDE, DRAWING = "choosing-a-lane.md", "benchmarks.svg"
BEGIN, END = "<!-- costs: written by make bench -->", "<!-- end of costs -->"
COSTS = {"inside": "ms in the claim flow", "client CPU": "its CPU, ms", "server CPU": "the server's CPU, ms"}
Documents = Sequence[Mapping[str, Any]]


def table(documents: Documents) -> None:
    """Print all ratios and goals."""
    shown = Table(title="benchmarks: medians of each side, ratio, goal")
    for column in ("benchmark", "what", "figure", "sides", "value", "goal", "reached"):
        shown.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for name, line in _lines(documents):
        sides = "  ".join(f"{side} {kit.cell(value)}" for side, value in line["sides"].items())
        reached = {None: "", True: "yes", False: "[bold]no[/bold]"}[line["reached"]]
        shown.add_row(name, line["what"], line["figure"], sides, kit.cell(line["value"]), line["goal"] or "", reached)
    Console(width=150).print(shown)


def missed(documents: Documents) -> list[str]:
    """The goals that were not reached."""
    return [
        f"{name}: {line['what']}: {line['figure']} is {kit.cell(line['value'])}, the goal {line['goal']}"
        for name, line in _lines(documents)
        if line["reached"] is False
    ]


def write_docs(documents: Documents, folder: Path) -> None:
    """The drawing, and in the guide the table of what a row costs in each lane."""
    (folder / DRAWING).write_text(plotting.drawing(panels(documents)))
    lanes = _of(documents, "lanes")
    guide = folder / GUIDE
    if lanes and guide.exists():
        block = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
        guide.write_text(block.sub(lambda _: f"{BEGIN}\n{costs(lanes)}\n{END}", guide.read_text()))


def costs(lanes: Sequence[Mapping[str, Any]]) -> str:
    """The drawing, and a row for each lane, as Markdown."""
    lines = [
        f"![What a row costs in each lane, and the ratios of all benchmarks]({DRAWING})",
        "",
        "Of a row that does nothing, by `python benchmarks/lanes.py` (medians):",
        "",
        "| lane | " + " | ".join(COSTS.values()) + " | requests |",
        "| --- |" + " ---: |" * (len(COSTS) + 1),
    ]
    for lane in lanes:
        cells = " | ".join(plotting.readable(lane[figure]) for figure in (*COSTS, "requests"))
        lines.append(f"| {lane['lane']} | {cells} |")
    return "\n".join(lines)


def panels(documents: Documents) -> list[plotting.Panel]:
    """Costs by lane; how near each goal is, 1 being as good as it; and the ratios that have none."""
    lanes = _of(documents, "lanes")
    of_lane = [
        plotting.Bar(label=f"{lane['lane']}: {who}", value=lane[figure], colour=colour)
        for lane in lanes
        for figure, who, colour in (
            ("inside", "time", plotting.PLAIN),
            ("server CPU", "server CPU", plotting.SECOND),
        )
    ]
    with_goal = [
        plotting.Bar(
            label=_label(name, line),
            value=_nearness(line),
            colour=plotting.GOOD if line["reached"] else plotting.MISSED,
        )
        for name, line in _lines(documents)
        if line["reached"] is not None and _nearness(line) > 0
    ]
    without = [
        plotting.Bar(label=_label(name, line), value=line["value"])
        for name, line in _lines(documents)
        if line["goal"] is None and line["value"]
    ]
    return [
        plotting.Panel(title="A row that does nothing, by lane: milliseconds, logarithmic", bars=of_lane),
        plotting.Panel(title="Goals: how far beyond each (right of the line: reached)", bars=with_goal, mark=1.0),
        plotting.Panel(title="Ratios without a goal", bars=without, mark=1.0),
    ]


def _nearness(line: Mapping[str, Any]) -> float:
    """The value in goals, so that more is better."""
    direction, bound = line["goal"].split()
    value = line["value"]
    if direction == ">=":
        return float(value / float(bound)) if float(bound) else 0.0
    return float(float(bound) / value) if value else 0.0


def _label(name: str, line: Mapping[str, Any]) -> str:
    label = f"{name}, {line['what']}: {line['figure']}"
    return label if len(label) <= 46 else f"{label[:45]}…"


def _lines(documents: Documents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((document["benchmark"], line) for document in documents for line in document["lines"])


def _of(documents: Documents, name: str) -> Sequence[Mapping[str, Any]]:
    return next((document["results"] for document in documents if document["benchmark"] == name), ())
