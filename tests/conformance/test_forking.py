"""A process that forks after it has published, as web servers and task queues do which load the application first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.kit.processes import Processes
from tests.kit.tables import by_status

CHILDREN, ROUNDS = 3, 40
FORKING = f"""
import os, sys
from prefect_claim_dispatch import publish, publish_many, Draft

def work():
    for _ in range({ROUNDS}):
        publish(None, "single")
        publish_many(None, [Draft().type("bulk"), Draft().type("bulk")])

publish(None, "single")
publish_many(None, [Draft().type("bulk"), Draft().type("bulk")])
children = []
for _ in range({CHILDREN}):
    children.append(os.fork())
    if not children[-1]:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
work()
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.fixture
def settings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database in the settings, for children too."""
    monkeypatch.setenv("CLAIM_DISPATCH_DATABASE_URL", database_url)


@pytest.mark.usefixtures("settings")
def test_parent_and_forks_publish_at_once(engine: Engine, children: Processes, tmp_path: Path) -> None:
    """Each has connections of its own: nothing is lost, doubled or answered to the wrong process."""
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    parent = children.start((sys.executable, str(script)))
    assert parent.wait(120) == 0, parent.told
    assert by_status(engine) == {"pending": 3 * (1 + ROUNDS * (1 + CHILDREN))}
