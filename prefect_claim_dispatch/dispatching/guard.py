"""The guard: decode, validate, and ask the rules again, for one row; whatever is wrong with it harms only itself."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from prefect_claim_dispatch import rules
from prefect_claim_dispatch.actions import Action
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.clocks import wall_clock
from prefect_claim_dispatch.dispatching.returns import awaited
from prefect_claim_dispatch.dispatching.signals import own
from prefect_claim_dispatch.errors import RulesUnansweredError
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Unprocessable, redacted
from prefect_claim_dispatch.payloads import problems
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.registrations import Processor
from prefect_claim_dispatch.rules import CompiledRules

Verdict = tuple[Action, dict[str, Any]] | Outcome
"""The action and its processor's arguments, ready to be dispatched; or the outcome that ends it here, without a run."""


def guarded(raw: RawAction, processor: Processor, policy: RetryPolicy) -> Verdict:
    """What the guard says of *raw*, however long it takes."""
    action = opened(raw, policy)
    return admitted(action, processor) if isinstance(action, Action) else action


def opened(raw: RawAction, policy: RetryPolicy) -> Action | Unprocessable:
    """The row as an `Action`, or why it can't be one that is attempted; calls nothing of the author's."""
    if raw.fail_count >= policy.max_attempts:
        attempts = f"{raw.fail_count} attempts of {policy.max_attempts} are used up"
        return Unprocessable(error_type="AttemptsUsedUp", message=attempts)
    return decoded(raw)


def may_take_long(action: Action, processor: Processor) -> bool:
    """Whether what is still to be asked of *action* may take its time: its rules, or code of the author's.

    What pydantic does by itself grows with the payload, and is done before a thread for it would have started.
    """
    return action.rules is not None or processor.has_validators(action.type)


def admitted(action: Action, processor: Processor) -> Verdict:
    """What the rules say, and the author's validation."""
    verdict = _ask_rules(action, processor)
    if verdict is not None:
        return verdict
    arguments = arguments_for(action, processor)
    return arguments if isinstance(arguments, Unprocessable) else (action, arguments)


def decoded(raw: RawAction) -> Action | Unprocessable:
    """The row as an `Action`, or why it can't be one."""
    try:
        return raw.action()
    except (ValueError, TypeError, RecursionError) as error:
        return Unprocessable(error_type="UndecodablePayload", message=_why(error))


def arguments_for(action: Action, processor: Processor) -> dict[str, Any] | Unprocessable:
    """What the processor's function is called with, or why the payload does not fit it."""
    try:
        return processor.arguments(action)
    except ValidationError as error:
        return Unprocessable(error_type="InvalidPayload", message=problems(error))
    except BaseException as error:  # noqa: BLE001 - a validator is the author's code and may raise anything
        return Unprocessable(error_type="InvalidPayload", message=f"validation raised {type(own(error)).__name__}")


def facts_about(action: Action, processor: Processor) -> dict[str, Any]:
    """The present state that the rules of *action* look at; empty when *processor* names none."""
    return {} if processor.facts is None else dict(awaited(processor.facts(action)))


def _ask_rules(action: Action, processor: Processor) -> Outcome | None:
    if action.rules is None:
        return None
    try:
        compiled = rules.compile_rules(action.rules)
    except Exception as error:  # noqa: BLE001 - rules written behind our back may break the engine in any way
        return Unprocessable(error_type="InvalidRules", message=_why(error))
    try:
        facts = facts_about(action, processor)
    except BaseException as error:  # noqa: BLE001 - the present state can't be asked now; it may be tomorrow
        return Failed.from_exception(own(error))
    return _answer(action, processor, compiled, facts)


def _answer(action: Action, processor: Processor, compiled: CompiledRules, facts: dict[str, Any]) -> Outcome | None:
    try:
        is_wanted = rules.evaluate(compiled, rules.context_of(action, facts, now=wall_clock()))
    except RulesUnansweredError as error:  # this machine had no time for them; it, or another, may have
        return Failed.from_exception(error)
    except BaseException as error:  # noqa: BLE001 - facts may be anything, and raise when they are looked at
        return Unprocessable(error_type="RulesFailed", message=_why(own(error)))
    if is_wanted:
        return None
    return processor.on_rules_false or Cancel("the rules are false")


def _why(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {error}", 300)
