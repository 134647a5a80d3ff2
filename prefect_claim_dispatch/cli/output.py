"""How answers look: JSON documents, tables, one-line errors. Whatever rows hold, terminals get printable text only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_claim_dispatch.outcomes import redacted

STDOUT: Final = 1
STDERR: Final = 2
PLAIN_WIDTH: Final = 200
LONGEST_CELL: Final = 200
STYLES: Final = {
    "pending": "cyan",
    "claimed": "yellow",
    "processed": "green",
    "dead": "red",
    "cancelled": "magenta",
}


@cache
def console(*, stderr: bool = False) -> Console:
    """The console for answers, or for everything else."""
    stream = sys.stderr if stderr else sys.stdout
    is_plain = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=PLAIN_WIDTH if is_plain else None, highlight=False, markup=False)


def print_json(document: Any) -> None:
    """The one JSON document of a command. ASCII only, so that no encoding of a pipe can break it."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def say(text: str) -> None:
    """One line of an answer."""
    console().print(printable(text), soft_wrap=True)


def tell(text: str) -> None:
    """One line that is no part of the answer."""
    console(stderr=True).print(printable(text), soft_wrap=True)


def complain(text: str, *, label: str = "error: ") -> None:
    """One line about what went wrong, without passwords."""
    line = Text(label, style="bold red") + Text(printable(redacted(text)))
    console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def output_to_stderr() -> Generator[None]:
    """Turn the descriptor itself aside: what users' modules and their children print must not mix with the answer."""
    sys.stdout.flush()
    standard_output = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(standard_output, STDOUT)
        os.close(standard_output)


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]], *, right: str = "") -> None:
    """A table for people. Columns whose heading is among the words of *right* are flush right."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right.split(",") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console().print(table)


def numbered(number: int) -> str:
    """``1 action``, ``2 actions``."""
    return f"{number:,} action{'' if number == 1 else 's'}"


def printable(value: Any) -> str:
    """*value* as text that does nothing to a terminal: escape sequences in a row's type must not be obeyed."""
    text = str(value).encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def written(at: datetime | None) -> str:
    """An instant to the second, in UTC."""
    return "" if at is None else at.strftime("%Y-%m-%d %H:%M:%SZ")


def spoken(age: timedelta | None) -> str:
    """An age in its two largest units: ``3d 4h``, ``5m 7s``."""
    if age is None:
        return ""
    left, parts = max(int(age.total_seconds()), 0), list[str]()
    for unit, seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, seconds)
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2])


def _cell(value: Any) -> Text:
    if isinstance(value, datetime):
        return Text(written(value))
    if isinstance(value, int):
        return Text(f"{value:,}" if value else "·", style="" if value else "dim")
    text = printable("" if value is None else value)
    return Text(text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…", style=STYLES.get(text, ""))
