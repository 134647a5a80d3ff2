"""What the acceptance tests share: a table, a claim flow on it, and the ledger of what really ran."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from prefect_claim_dispatch import DispatchReport, databases
from tests.kit.prefect_server import PrefectServer

PROCESSORS = "tests.acceptance.processors"
Dispatch = Callable[..., DispatchReport]


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that processors write each execution into."""
    file = tmp_path / "ledger"
    monkeypatch.setenv("LEDGER", str(file))
    return file


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The table's engine; the same URL is in the settings."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", database_url)
    return databases.engine_for(database_url)


@pytest.fixture
def dispatch(engine: Engine, prefect_api: PrefectServer, ledger_file: Path) -> Dispatch:
    """Run one claim flow here, in the test's process, against the shared Prefect server."""
    from prefect_claim_dispatch import claim_dispatch

    def run(**options: Any) -> DispatchReport:
        options = {"processors": [PROCESSORS], "lease": timedelta(seconds=60)} | options
        return claim_dispatch(**options)

    return run
