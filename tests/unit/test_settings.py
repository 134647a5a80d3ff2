"""The settings: the environment beats the default."""

from __future__ import annotations

import pytest

from prefect_claim_dispatch import settings


def test_configuration_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is deployed is where it is configured: which processors, how many rows a claim, which table."""
    default = settings.load()
    monkeypatch.setenv("CLAIM_DISPATCH_PROCESSORS", "app.mail, app.reports,")
    monkeypatch.setenv("CLAIM_DISPATCH_CATALOGUE", "app.types,")
    monkeypatch.setenv("CLAIM_DISPATCH_LIMIT", "50")
    monkeypatch.setenv("CLAIM_DISPATCH_TABLE", "other")

    configured = settings.load()

    assert (default.processors, default.limit, default.table) == ((), 1000, "action_logs")
    assert (default.catalogue, configured.catalogue) == ((), ("app.types",))
    assert (configured.processors, configured.limit, configured.table) == (("app.mail", "app.reports"), 50, "other")
