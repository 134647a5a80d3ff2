"""What importing the package costs an application that only publishes."""

from __future__ import annotations

import subprocess
import sys

FOREIGN = ("prefect", "alembic", "cyclopts", "rich")


def imported_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter imports for *code*."""
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}


def test_import_brings_no_prefect() -> None:
    """A web application keeps its own FastAPI, and does not wait a second for Prefect's."""
    imported = imported_by("import prefect_claim_dispatch")

    assert "prefect_claim_dispatch" in imported
    assert imported.isdisjoint(FOREIGN)


def test_publishing_brings_no_prefect(sqlite_url: str) -> None:
    """What is imported late would be imported in somebody's first request."""
    imported = imported_by(
        "from prefect_claim_dispatch import Publisher, publish, publish_many\n"
        f"publish({sqlite_url!r}, 'email.welcome', {{'a': 1}}, rules={{'var': 'payload.a'}})\n"
        f"Publisher({sqlite_url!r}).draft('email.welcome').commit()\n"
    )

    assert "sqlalchemy" in imported
    assert imported.isdisjoint(FOREIGN)
