"""Which part of an action's rules is false: every operation with what it comes to now.

Each part is compiled and evaluated by itself, over the same context, by the engine that dispatch asks and on the same
budget. Parts that look at something else than the context (the body of a `map`, what follows a `try`) are not taken
apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, cast

from prefect_claim_dispatch.errors import InvalidRulesError
from prefect_claim_dispatch.rules import compile_rules, encode_context, evaluate, value_of

# The operations whose first argument alone is evaluated over the context.
_SCOPED: Final = frozenset(("map", "filter", "reduce", "all", "some", "none", "sort", "group_by", "distinct", "try"))
_LAZY: Final = frozenset(("switch", "match", "throw"))
_CHOICES: Final = frozenset(("and", "or", "if", "?:", "??", "!", "!!"))


class State(StrEnum):
    """What a part comes to."""

    TRUE = "true"
    FALSE = "false"
    ERROR = "error"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One operation, or a literal beside one: its text, what it comes to, and its own parts in their order.

    `state` says whether it holds, by JSONLogic's idea of truth. `kind` is that of its value: ``string``, ``number``,
    ``boolean``, ``null``, ``array``, ``object``, ``datetime``; None when there is none. `value` is the value as JSON
    text, of all but null, arrays and objects, for those who may see payloads.
    """

    pointer: str
    operator: str | None
    text: str
    state: State
    kind: str | None = None
    value: str | None = None
    error: str | None = None
    parts: tuple[Part, ...] = ()

    def as_dict(self, *, values: bool = False) -> dict[str, Any]:
        """The tree, ready for JSON; what was read from the context only with *values*."""
        shown = {"value": json.loads(self.value)} if values and self.value is not None else {}
        return {
            "pointer": self.pointer,
            "operator": self.operator,
            "rule": json.loads(self.text),
            "state": self.state.value,
            "kind": self.kind,
            **shown,
            "error": self.error,
            "parts": [part.as_dict(values=values) for part in self.parts],
        }


def explain(rules: Any, context: Mapping[str, Any] | None) -> Part:
    """What *rules* and each of their parts come to in *context*; without one nothing is asked.

    Never raises for what the rules are: what can't be compiled or evaluated is a part whose `state` is an error.
    """
    return _part(rules, "", None if context is None else encode_context(context))


def _part(rules: Any, pointer: str, context: str | None) -> Part:
    operator, arguments = _taken_apart(rules)
    part = Part(
        pointer=pointer,
        operator=operator,
        text=json.dumps(rules, ensure_ascii=False),
        state=State.NOT_ASKED,
        parts=_parts(operator, arguments, pointer if operator is None else f"{pointer}/{_escaped(operator)}", context),
    )
    if context is None:
        return part
    try:
        compiled = compile_rules(rules)
        state = State.TRUE if evaluate(compiled, context) else State.FALSE
        kind, value = value_of(compiled, context)
    except InvalidRulesError as error:
        return replace(part, state=State.ERROR, error=str(error))
    return replace(part, state=state, kind=kind, value=value)


def _taken_apart(rules: Any) -> tuple[str | None, list[Any]]:
    """The operator and its arguments; of a list, no operator and its items; of a literal, nothing."""
    if isinstance(rules, list):
        return None, cast("list[Any]", rules)
    if isinstance(rules, dict) and len(cast("dict[str, Any]", rules)) == 1:
        ((operator, arguments),) = cast("dict[str, Any]", rules).items()
        return operator, cast("list[Any]", arguments) if isinstance(arguments, list) else [arguments]
    return None, []


def _parts(operator: str | None, arguments: list[Any], pointer: str, context: str | None) -> tuple[Part, ...]:
    if operator in _LAZY:
        return ()
    found: list[Part] = []
    for index, argument in enumerate(arguments[:1] if operator in _SCOPED else arguments):
        # A literal is worth a line only where it may be the one that decides.
        if operator in _CHOICES or _has_operation(argument):
            asked = context if _is_asked(operator, index, found) else None
            found.append(_part(argument, f"{pointer}/{index}", asked))
    return tuple(found)


def _is_asked(operator: str | None, index: int, before: Sequence[Part]) -> bool:
    """Whether the engine evaluates the argument at *index*, after what those *before* it came to."""
    match operator:
        case "and":
            return all(part.state is State.TRUE for part in before)
        case "or":
            return all(part.state is State.FALSE for part in before)
        case "??":
            return all(part.kind == "null" for part in before)
        case "if" | "?:":
            *others, last = [State.FALSE, *(part.state for part in before[:index:2])]
            return all(state is State.FALSE for state in others) and last is (State.TRUE if index % 2 else State.FALSE)
        case _:
            return True


def _has_operation(rules: Any) -> bool:
    return isinstance(rules, dict) or (isinstance(rules, list) and any(map(_has_operation, cast("list[Any]", rules))))


def _escaped(operator: str) -> str:
    return operator.replace("~", "~0").replace("/", "~1")
