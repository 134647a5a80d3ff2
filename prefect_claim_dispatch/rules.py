"""Rules: a JSONLogic predicate that travels with an action, and is asked again when the action is dispatched.

A rule is compiled at publish, so that a malformed one is refused there, and evaluated at dispatch, over what `CONTEXT`
names. The engine is datalogic-py. Evaluating runs on a budget of operations, which a rule that would run for ever uses
up within milliseconds. Operators that compute on tensors or for feature flags are left out.

Instants in the context are ISO text. Compare them as instants:
``{"<": [{"datetime": {"var": "now"}}, {"datetime": {"var": "payload.until"}}]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from datalogic_py import CompileError, DataLogicError, Engine, Rule

from prefect_claim_dispatch.encoding import Limits, encode
from prefect_claim_dispatch.errors import InvalidRulesError

MAX_RULES_BYTES: Final = 16 * 1024
MAX_RULES_DEPTH: Final = 64
MAX_OPERATIONS: Final = 100_000
MAX_CONTEXT_BYTES: Final = 512 * 1024 * 1024
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
_RULES: Final = Limits(what="rules", max_bytes=MAX_RULES_BYTES, max_depth=MAX_RULES_DEPTH, error=InvalidRulesError)
_FACTS: Final = Limits(what="the rules' context", max_bytes=MAX_CONTEXT_BYTES, max_depth=200, error=InvalidRulesError)
_ENGINE: Final = Engine(config={"ops_budget": MAX_OPERATIONS}, families=_FAMILIES)


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """Rules ready to be evaluated: their canonical JSON, and what the engine made of it."""

    text: str
    rule: Rule


def compile_rules(rules: Any) -> CompiledRules:
    """*rules* compiled; the same object for equal rules, since a publisher sends the same few over and over.

    Raises:
        InvalidRulesError: no JSONLogic that this engine knows, or over `MAX_RULES_BYTES` or `MAX_RULES_DEPTH`.
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


def evaluate(compiled: CompiledRules, context: Mapping[str, Any]) -> bool:
    """Whether the rules hold in *context*, by JSONLogic's idea of truth: "", [], {}, 0 and null are false.

    Raises:
        InvalidRulesError: they can't be evaluated, or not within `MAX_OPERATIONS`. It shows no value of the context.
    """
    try:
        result, _spent = compiled.rule.evaluate_metered(encode(context, _FACTS))
    except DataLogicError as error:
        kind, operator = getattr(error, "error_type", type(error).__name__), getattr(error, "operator", None)
    else:
        return _ENGINE.truthy(result)
    # Not chained: the engine's own message may quote the payload.
    if kind == "BudgetExceeded":
        msg = f"rules take more than {MAX_OPERATIONS} operations, last in {operator!r}; simplify them"
    else:
        msg = f"rules can't be evaluated: {kind} in operator {operator!r}; check what they read"
    raise InvalidRulesError(msg)


@lru_cache(maxsize=1024)
def _compiled(text: str) -> CompiledRules:
    try:
        return CompiledRules(text, _ENGINE.compile_checked(text))
    except CompileError as error:
        first = error.diagnostics[0]
        reason = f"{first['message']} at {first['pointer'] or '/'}"
    except DataLogicError as error:
        reason = str(error)
    msg = f"rules are not JSONLogic that compiles: {_printable(reason[:300])}; see https://jsonlogic.com"
    raise InvalidRulesError(msg)


def _printable(text: str) -> str:
    """*text* with what is not printable escaped: it goes into logs and onto terminals."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
