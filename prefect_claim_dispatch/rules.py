"""Rules: a JSONLogic predicate that travels with an action, and is asked again when the action is dispatched.

A rule is compiled at publish, so that a malformed one is refused there, and evaluated at dispatch, over what `CONTEXT`
names. The engine is datalogic-py. Evaluating runs on a budget of operations, which a rule that would run for ever uses
up within milliseconds. Operators that compute on tensors or for feature flags are left out, and so is what the budget
does not count: see `_uncounted`.

One operation may read all of a large text, though, and it is counted as one: `BYTES_READ_HERE` bounds what is evaluated
here, and what needs more is evaluated in a process that can be ended: see :mod:`.evaluator`.

Instants in the context are ISO text. Compare them as instants:
``{"<": [{"datetime": {"var": "now"}}, {"datetime": {"var": "payload.until"}}]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, cast

from datalogic_py import CompileError, DataLogicError, Engine, Rule

from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.encoding import Limits, encode
from prefect_claim_dispatch.errors import InvalidRulesError, RulesUnansweredError
from prefect_claim_dispatch.evaluator import EvaluatorEndedError, evaluated_apart

MAX_RULES_BYTES: Final = 16 * 1024
MAX_RULES_DEPTH: Final = 64
MAX_OPERATIONS: Final = 100_000
MAX_CONTEXT_BYTES: Final = 512 * 1024 * 1024
BYTES_READ_HERE: Final = 250_000_000
"""Operations times bytes of context: less than a second, though each operation should read all of it."""

MAX_FORMAT_LENGTH: Final = 100
CONTEXT: Final = ("payload", "meta", "action", "now", "facts")

_FAMILIES: Final = (
    "Core",
    "DateTime",
    "ExtString",
    "ExtArray",
    "ExtObject",
    "ExtControl",
    "ErrorHandling",
    "ExtMath",
)
# What each of these comes to is a number, a text whose bytes are counted, or true or false.
# fmt: off
_SCALAR: Final = frozenset((
    "+", "-", "*", "/", "%", "max", "min", "abs", "ceil", "floor", "cat", "substr", "upper", "lower",
    "trim", "length", "type", "==", "===", "!=", "!==", "<", "<=", ">", ">=", "!", "!!", "in", "all",
    "some", "none", "starts_with", "ends_with", "exists", "date_diff",
))
# fmt: on
_CHOICES: Final = frozenset(("and", "or", "??", "if", "?:"))
_FORMATS: Final = {"format_date": 1, "parse_date": 1, "date_diff": 2}
_RULES: Final = Limits(what="rules", max_bytes=MAX_RULES_BYTES, max_depth=MAX_RULES_DEPTH, error=InvalidRulesError)
_FACTS: Final = Limits(what="the rules' context", max_bytes=MAX_CONTEXT_BYTES, max_depth=200, error=InvalidRulesError)
_ENGINE: Final = Engine(config={"ops_budget": MAX_OPERATIONS}, families=_FAMILIES)


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """Rules ready to be evaluated: their canonical JSON, and what the engine made of it: true or false."""

    text: str
    rule: Rule


def compile_rules(rules: Any) -> CompiledRules:
    """*rules* compiled; the same object for equal rules, since a publisher sends the same few over and over.

    Raises:
        InvalidRulesError: no JSONLogic that this engine knows, or over `MAX_RULES_BYTES` or `MAX_RULES_DEPTH`; or
            what they do is not counted by the budget.
    """
    return _compiled(encode(rules, _RULES))


def checked_rules(rules: Any) -> CompiledRules:
    """*rules* compiled, and refused if they can hardly mean what they say; for publishing.

    Raises:
        InvalidRulesError: as `compile_rules`; or no single operation; or they read what is not in `CONTEXT`.
    """
    if not isinstance(rules, Mapping) or len(cast("Mapping[Any, Any]", rules)) != 1:
        got = f"{len(cast('Mapping[Any, Any]', rules))} keys" if isinstance(rules, Mapping) else type(rules).__name__
        msg = f"rules must be one JSONLogic operation, an object with one key, got {got}; combine several with 'and'"
        raise InvalidRulesError(msg)
    compiled = compile_rules(rules)
    for path in compiled.rule.facts()["reads"]:
        if path and path[0] not in CONTEXT:
            whole = ascii(f"payload.{'.'.join(path)}")
            msg = f"rules read {path[0]!a}, which is none of {', '.join(CONTEXT)}; write {whole}"
            raise InvalidRulesError(msg[:500])
    return compiled


def context_of(action: Action, facts: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
    """What rules look at when *action* is dispatched at *now*; instants are ISO text."""
    return {
        "payload": dict(action.payload),
        "meta": dict(action.meta),
        "action": {
            "id": action.id,
            "type": action.type,
            "attempt": action.attempt,
            "end_at": action.end_at.isoformat(),
            "created_at": action.created_at.isoformat(),
        },
        "now": now.isoformat(),
        "facts": facts,
    }


def encode_context(context: Mapping[str, Any]) -> str:
    """*context* as JSON text, for those who evaluate more than one thing over it.

    Raises:
        InvalidRulesError: something in it, most likely in the facts, is no JSON.
    """
    return encode(context, _FACTS)


def evaluate(compiled: CompiledRules, context: Mapping[str, Any] | str) -> bool:
    """Whether the rules hold in *context*, by JSONLogic's idea of truth: "", [], {}, 0 and null are false.

    Raises:
        InvalidRulesError: they can't be evaluated, or not within `MAX_OPERATIONS` or the time that rules have. It shows
            no value of the context.
        RulesUnansweredError: not now, on this machine.
    """
    text = context if isinstance(context, str) else encode_context(context)
    return _result(_truth_of(compiled.text), text, compiled.rule) == "true"


def value_of(compiled: CompiledRules, context: str) -> tuple[str, str | None]:
    """The kind of what the rules come to, as the operator `type` has it, and the value as JSON text.

    No text of what is null, a list or an object: it can be of any size, and the budget does not count it.

    Raises:
        InvalidRulesError: as `evaluate`.
    """
    kind = str(json.loads(_result(f'{{"type":[{compiled.text}]}}', context)))
    value = None if kind in ("null", "array", "object") else _result(compiled.text, context)
    return kind, value


def _truth_of(text: str) -> str:
    # Asked only whether it holds: as text, a result that names one large value many times can be of any size.
    return f'{{"!!":[{text}]}}'


def _result(text: str, context: str, compiled: Rule | None = None) -> str:
    rule = _ENGINE.compile(text) if compiled is None else compiled
    operations = min(MAX_OPERATIONS, max(1, BYTES_READ_HERE // max(1, len(context))))
    try:
        # Of text, the engine gives up the interpreter while it evaluates; of Python's own objects it would not.
        return rule.evaluate_metered(context, operations)[0]
    except DataLogicError as error:
        kind, operator = getattr(error, "error_type", type(error).__name__), getattr(error, "operator", None)
    if kind == "BudgetExceeded" and operations < MAX_OPERATIONS:
        return _result_apart(text, context)
    raise _unanswered(kind, operator)


def _result_apart(text: str, context: str) -> str:
    try:
        result, *trouble = evaluated_apart(text, context, families=_FAMILIES, operations=MAX_OPERATIONS)
    except EvaluatorEndedError as ended:
        error = InvalidRulesError if ended.is_by_rules else RulesUnansweredError
        msg = f"rules can't be evaluated: {ended}; simplify them, or let them read less"
        raise error(msg) from None
    if result is not None:
        return result
    raise _unanswered(*trouble)


def _unanswered(kind: str | None, operator: str | None) -> InvalidRulesError:
    # Not chained: the engine's own message may quote the payload.
    if kind == "BudgetExceeded":
        msg = f"rules take more than {MAX_OPERATIONS} operations, last in {operator!r}; simplify them"
    else:
        msg = f"rules can't be evaluated: {kind} in operator {operator!r}; check what they read"
    return InvalidRulesError(msg)


@lru_cache(maxsize=1024)
def _compiled(text: str) -> CompiledRules:
    reason = _uncounted(json.loads(text), "")
    if reason is not None:
        msg = f"rules are refused: {_printable(reason[:300])}"
        raise InvalidRulesError(msg)
    try:
        return CompiledRules(text, _ENGINE.compile_checked(_truth_of(text)))
    except CompileError as error:
        first = error.diagnostics[0]
        reason = f"{first['message']} at {first['pointer'].removeprefix('/!!/0') or '/'}"
    except DataLogicError as error:
        reason = str(error)
    msg = f"rules are not JSONLogic that compiles: {_printable(reason[:300])}; see https://jsonlogic.com"
    raise InvalidRulesError(msg)


def _uncounted(rules: Any, pointer: str) -> str | None:
    """Why the budget of operations would not bound the time and memory that *rules* take; None when it does.

    The engine copies what a `reduce` has come to at each step, writes out what is thrown, and expands a format, all
    without counting: a few dozen bytes of rules would take the memory of every claim flow that dispatches them.
    """
    if isinstance(rules, list):
        parts = [(str(index), part) for index, part in enumerate(cast("list[Any]", rules))]
    elif isinstance(rules, dict):
        parts = list(cast("dict[str, Any]", rules).items())
        for operator, arguments in parts:
            reason = _refusal(operator, cast("list[Any]", arguments) if isinstance(arguments, list) else [arguments])
            if reason is not None:
                return f"{reason} at {pointer or '/'}"
    else:
        return None
    reasons = (_uncounted(part, f"{pointer}/{key}") for key, part in parts)
    return next((reason for reason in reasons if reason is not None), None)


def _refusal(operator: str, arguments: list[Any]) -> str | None:
    if operator == "reduce" and not all(map(_is_scalar, arguments[1:2])):
        return "`reduce` must come to a number, a text, true or false at each step; for lists take map and filter"
    if operator == "throw" and any(isinstance(argument, dict | list) for argument in arguments):
        return "`throw` takes plain text, nothing that is computed"
    if operator in _FORMATS and not all(map(_is_short_text, arguments[_FORMATS[operator] :])):
        return f"the format or unit of `{operator}` must be plain text of at most {MAX_FORMAT_LENGTH} characters"
    return None


def _is_scalar(rules: Any) -> bool:
    """Whether *rules* surely come to a number, a text, true or false; a variable may hold anything."""
    if not isinstance(rules, dict):
        return not isinstance(rules, list)
    ((operator, arguments), *others) = cast("dict[str, Any]", rules).items() or [("", None)]
    if others or operator not in _CHOICES:
        return not others and operator in _SCALAR
    results = cast("list[Any]", arguments) if isinstance(arguments, list) else [arguments]
    if operator in ("if", "?:"):
        results = [part for index, part in enumerate(results) if index % 2 or index == len(results) - 1]
    return all(map(_is_scalar, results))


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_FORMAT_LENGTH


def _printable(text: str) -> str:
    """*text* with what is not printable escaped: it goes into logs and onto terminals."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
