"""Publish actions inside your transaction; a Prefect flow claims what is due and dispatches each to its processor.

Importing this package, and publishing, imports no Prefect: the names of the processor's side are loaded when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prefect_claim_dispatch.actions import Action, ActionStatus
from prefect_claim_dispatch.drafts import Draft, Receipt
from prefect_claim_dispatch.errors import MissingExtraError, comes_with_prefect
from prefect_claim_dispatch.outcomes import Cancel, Snooze
from prefect_claim_dispatch.publishing import Publisher, publish, publish_many

if TYPE_CHECKING:
    from prefect_claim_dispatch import errors, operations, schema, settings, testing
    from prefect_claim_dispatch.awaiting import apublish, apublish_many
    from prefect_claim_dispatch.catalogue import action_type
    from prefect_claim_dispatch.claimed import claimed_action
    from prefect_claim_dispatch.deployments import deployment_processor
    from prefect_claim_dispatch.flow import claim_dispatch
    from prefect_claim_dispatch.processors import Isolation, processor
    from prefect_claim_dispatch.rendering import publish_sql
    from prefect_claim_dispatch.reports import DispatchReport

__version__ = "0.1.0"

_LAZY = {
    "Isolation": "processors",
    "action_type": "catalogue",
    "apublish": "awaiting",
    "apublish_many": "awaiting",
    "claimed_action": "claimed",
    "deployment_processor": "deployments",
    "publish_sql": "rendering",
    "processor": "processors",
    "claim_dispatch": "flow",
    "DispatchReport": "reports",
}
_MODULES = frozenset({"errors", "operations", "schema", "settings", "testing"})

__all__ = [
    "Action",
    "ActionStatus",
    "Cancel",
    "DispatchReport",
    "Draft",
    "Isolation",
    "Publisher",
    "Receipt",
    "Snooze",
    "action_type",
    "apublish",
    "apublish_many",
    "claim_dispatch",
    "claimed_action",
    "deployment_processor",
    "errors",
    "operations",
    "processor",
    "publish",
    "publish_many",
    "publish_sql",
    "schema",
    "settings",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _LAZY:
        return getattr(_loaded(name), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def _loaded(name: str) -> ModuleType:
    try:
        return import_module(f"{__name__}.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        if not comes_with_prefect(error):
            raise
        raise MissingExtraError(name, "prefect") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
