"""Hot keys: claims while many actions wait for few ordering keys, at the price of the keys and not of the actions.

A claim looks at the first rows of each lane. Where these wait for others, it would find nothing, and what is behind
them would never come: then what has no key is claimed by the index, beginning where there was some last, and of each
key its head. What is remembered for that, for a moment, is of no consequence for what may be claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, Table, UpdateBase

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dialects import SQLITE, bind_rows
from prefect_claim_dispatch.statements.claim import claim_behind
from prefect_claim_dispatch.statements.ordering import SAMPLE, depth, heads
from prefect_claim_dispatch.surveying import Lane

KEYS_AT_ONCE: Final = 1_000
"""Most ordering keys that one claim looks at; the next goes on behind them."""

LOOK_EVERY: Final = 1.0
"""Seconds between looks whether lanes that fill every claim keep others, which wait behind keys, from ever coming."""

SHORTEST, PATIENCE = 0.25, 10.0
"""Seconds for which it is believed where what has no key begins; or ten times what it took to find out."""

END_AT, ID, ORDERING_KEY = 3, 0, 9  # by position, as in `action_columns`

Place = tuple[str, int]


@dataclass(slots=True)
class _Floor:
    """Before this there was nothing due without a key, by what was seen until *until*."""

    end_at: Any
    id: int
    until: float


@dataclass(slots=True)
class _Memory:
    thick: dict[Place, tuple[float, bool]] = field(default_factory=dict[Place, tuple[float, bool]])
    floors: dict[Place, _Floor] = field(default_factory=dict[Place, _Floor])
    after_key: str | None = None


_memories: WeakKeyDictionary[Engine, dict[Table, _Memory]] = WeakKeyDictionary()


def claimed_rows(  # noqa: PLR0917 - each of another type
    connection: Connection,
    table: Table,
    lanes: Sequence[Lane],
    shape: tuple[int, ...],
    statement: UpdateBase,
    parameters: dict[str, Any],
) -> Sequence[Row[Any]]:
    """The rows that a claim of *lanes* brings, in this transaction, by *statement* if it will do.

    *shape* and *parameters* are the statement's, which looks at the first rows of each lane.
    """
    memory, limit = _memories.setdefault(connection.engine, {}).setdefault(table, _Memory()), parameters["limit"]
    if _are_thick(connection, table, lanes, parameters, memory):
        return _behind(connection, table, lanes, shape, parameters, memory)
    rows = connection.execute(statement, parameters).all()
    if len(rows) == limit or not _are_deep(connection, table, lanes, parameters, memory):
        return rows
    return [*rows, *_behind(connection, table, lanes, shape, parameters | {"limit": limit - len(rows)}, memory)]


def _are_thick(
    connection: Connection, table: Table, lanes: Sequence[Lane], parameters: dict[str, Any], memory: _Memory
) -> bool:
    """Whether at the front of a lane most rows wait for others, by a look that is not old."""
    at = elapsed_clock()
    known = [memory.thick.setdefault(_place(lane), (at + LOOK_EVERY, False)) for lane in lanes]
    if any(until < at for until, _ in known):
        looks = _looks(connection, table, lanes, parameters)
        known = [(at + LOOK_EVERY, is_deep and 2 * (free or 0) < SAMPLE) for is_deep, free in looks]
        memory.thick.update(zip(map(_place, lanes), known, strict=True))
    return any(is_thick for _, is_thick in known)


def _are_deep(
    connection: Connection, table: Table, lanes: Sequence[Lane], parameters: dict[str, Any], memory: _Memory
) -> bool:
    """Whether a claim that brought less than it might has left out what is due."""
    looks = _looks(connection, table, lanes, parameters)
    until = elapsed_clock() + LOOK_EVERY
    memory.thick.update((_place(lane), (until, is_deep)) for lane, (is_deep, _) in zip(lanes, looks, strict=True))
    return any(is_deep for is_deep, _ in looks)


def _looks(
    connection: Connection, table: Table, lanes: Sequence[Lane], parameters: dict[str, Any]
) -> list[tuple[bool, int | None]]:
    names = {name: value for name, value in parameters.items() if name.startswith(("type_", "priority_", "limit"))}
    row = connection.execute(depth(table, connection.dialect.name, len(lanes)), names).one()
    return [(bool(row[2 * position]), row[2 * position + 1]) for position in range(len(lanes))]


def _behind(  # noqa: PLR0917 - each of another type
    connection: Connection,
    table: Table,
    lanes: Sequence[Lane],
    shape: tuple[int, ...],
    parameters: dict[str, Any],
    memory: _Memory,
) -> Sequence[Row[Any]]:
    dialect, began = connection.dialect.name, elapsed_clock()
    turns = {_place(lane): turn for lane, turn in zip(lanes, _turns(shape), strict=True)}
    found = _heads(connection, table, memory)
    ready = [head for head in found if head.may_run and (head.type, head.priority) in turns]
    columns = {"id": [head.id for head in ready], "turn": [turns[head.type, head.priority] for head in ready]}
    floors = [floor if (floor := memory.floors.get(_place(lane))) and floor.until > began else None for lane in lanes]
    for position, floor in enumerate(floors):
        parameters = parameters | {
            f"from_at_{position}": _earliest(dialect) if floor is None else floor.end_at,
            f"from_id_{position}": 0 if floor is None else floor.id,
        }
    statement = claim_behind(table, dialect, shape, bounded="until" in parameters)
    rows = connection.execute(statement, parameters | bind_rows(dialect, "head", columns)).all()
    took = elapsed_clock() - began
    firsts = _first_keyless(rows)
    is_all = len(rows) < parameters["limit"] and "until" not in parameters and bool(found)
    for lane, floor in zip(lanes, floors, strict=True):
        first = firsts.get(_place(lane), (found[0].now, 0) if is_all else None)
        if first is not None:
            until = began + max(SHORTEST, PATIENCE * took) if floor is None else floor.until
            memory.floors[_place(lane)] = _Floor(*first, until)
    return rows


def _heads(connection: Connection, table: Table, memory: _Memory) -> list[Row[Any]]:
    """The heads of up to `KEYS_AT_ONCE` keys, going on where the last claim ended."""
    dialect, after = connection.dialect.name, memory.after_key
    names: dict[str, Any] = {"limit": KEYS_AT_ONCE}
    if after is not None:
        names["after_key"] = after
    found = list(connection.execute(heads(table, dialect, further=after is not None), names).all())
    if after is not None and len(found) < KEYS_AT_ONCE:
        rest = connection.execute(heads(table, dialect, further=False), {"limit": KEYS_AT_ONCE - len(found)}).all()
        keys = {head.ordering_key for head in found}
        found += [head for head in rest if head.ordering_key not in keys]
    memory.after_key = found[-1].ordering_key if len(found) == KEYS_AT_ONCE else None
    return found


def _first_keyless(rows: Sequence[Row[Any]]) -> dict[Place, tuple[Any, int]]:
    firsts: dict[Place, tuple[Any, int]] = {}
    for row in rows:
        if row[ORDERING_KEY] is None:
            place, here = (row.type, row.priority), (row[END_AT], row[ID])
            firsts[place] = min(firsts.get(place, here), here)
    return firsts


def _turns(shape: tuple[int, ...]) -> list[int]:
    return [turn for turn, number in enumerate(shape) for _ in range(number)]


def _place(lane: Lane) -> Place:
    return lane.type, lane.priority


def _earliest(dialect: str) -> Any:
    return "0001-01-02 00:00:00" if dialect == SQLITE else datetime(1, 1, 2, tzinfo=UTC)
