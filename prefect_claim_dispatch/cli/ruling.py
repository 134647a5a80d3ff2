"""``claim-dispatch rules explain``: which part of an action's rules is false now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cyclopts import App

from prefect_claim_dispatch import databases, operations, settings
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.cli.options import Common, Flag, find_modules_here
from prefect_claim_dispatch.cli.output import output_to_stderr, print_json, say
from prefect_claim_dispatch.cli.running import needs_prefect
from prefect_claim_dispatch.clocks import wall_clock
from prefect_claim_dispatch.errors import InvalidRulesError
from prefect_claim_dispatch.explaining import Part, State, explain
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.rules import context_of

LONGEST_RULE = 160
VERDICTS = {
    State.TRUE: "its rules hold",
    State.FALSE: "its rules are false",
    State.ERROR: "its rules can't be evaluated: it would go dead",
    State.NOT_ASKED: "its rules are not asked",
}

rules = App(name="rules", help="Look at the rules of actions.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the processor's `facts` said, None when they could not be asked, and where that comes from in words."""

    values: Mapping[str, Any] | None
    told: str


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(rules)


@rules.command(name="explain")
def explain_(
    id: int,  # noqa: A002 - the column's name
    /,
    *,
    processors: tuple[str, ...] | None = None,
    values: Flag = False,
    common: Common | None = None,
) -> None:
    """Show what each part of an action's rules comes to now, and so which one is false.

    Args:
        id: The action's id.
        processors: A module whose processors to register, for the facts they name; may be given more than once.
        values: Show also the values that the rules read from payload, metadata and facts.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    row = operations.get(common.checked_engine(), id, table=common.table)
    table = databases.table_named(common.table)
    action = row.action(table.name, table.schema)
    facts, now = Facts(values=None, told="not asked"), wall_clock()
    tree: Part | None = None
    if action is not None and action.rules is not None:
        facts = _facts(action, settings.load().processors if processors is None else processors)
        tree = _explained(action, None if facts.values is None else context_of(action, facts.values, now=now))
    heading = _heading(action, tree)
    if common.json:
        document = None if tree is None else tree.as_dict(values=values)
        about = {"id": row.id, "type": row.type, "status": row.status.value, "now": now.isoformat()}
        print_json({**about, "verdict": heading, "facts": facts.told, "rules": document})
        return
    say(f"{row.type} #{row.id} ({row.status.value}): {heading}")
    if tree is not None:
        say(f"facts: {facts.told}")
        for line in _lines(tree, values=values):
            say(line)


def _heading(action: Action | None, tree: Part | None) -> str:
    if action is None:
        return "its payload can't be decoded: it would go dead"
    return "it has no rules" if tree is None else VERDICTS[tree.state]


def _explained(action: Action, context: Mapping[str, Any] | None) -> Part:
    try:
        return explain(action.rules, context)
    except InvalidRulesError as error:
        return replace(explain(action.rules, None), state=State.ERROR, error=str(error))


def _facts(action: Action, processors: tuple[str, ...]) -> Facts:
    if not processors:
        return Facts(values={}, told="{}, since no processors are given; --processors names their modules")
    find_modules_here()
    with needs_prefect("claim-dispatch rules explain --processors"):
        from prefect_claim_dispatch.dispatching.guard import facts_about  # noqa: PLC0415 - Prefect, if it is installed
        from prefect_claim_dispatch.processors import load_modules, registry  # noqa: PLC0415
    with output_to_stderr():
        load_modules(processors, catalogue=settings.load().catalogue)
        processor = registry.match(action.type)
        if processor is None:
            return Facts(values={}, told=f"{{}}, since no processor for {action.type} is in {', '.join(processors)}")
        try:
            values = facts_about(action, processor)
        except Exception as error:  # noqa: BLE001 - the author's code may raise anything
            return Facts(values=None, told=redacted(f"they can't be asked: {type(error).__name__}: {error}", 300))
    return Facts(values=values, told=f"of {processor.place}" if processor.facts else "{}, the processor names none")


def _lines(part: Part, depth: int = 0, *, values: bool) -> Iterator[str]:
    indent = "  " * depth
    text = part.text if part.operator not in ("and", "or", "if", "?:", "!") else part.operator
    shown = text if len(text) <= LONGEST_RULE else text[: LONGEST_RULE - 1] + "…"
    value = f"  = {part.value or part.kind}" if values and part.kind is not None and _is_read(part) else ""
    yield f"{part.state.value:<9}  {indent}{shown}{value}"
    if part.error is not None and not any(inner.state is State.ERROR for inner in part.parts):
        yield f"{'':<9}  {indent}  {part.error}"
    for inner in part.parts:
        yield from _lines(inner, depth + 1, values=values)


def _is_read(part: Part) -> bool:
    """Whether the value says more than the state does."""
    return part.operator is not None and part.kind != "boolean"
