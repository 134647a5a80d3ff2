"""The explanation on docs/rules.md, as the command prints it."""

from __future__ import annotations

import json

import pytest

from prefect_claim_dispatch import cli, publish
from prefect_claim_dispatch.cli.output import console
from tests.kit.documents import blocks


def test_explanation_is_what_the_command_prints(empty_database_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Sample output that was written by hand teaches what is not so."""
    page = blocks("docs/rules.md")
    assert cli.run(["db", "upgrade", "--database-url", empty_database_url]) == 0
    publish(empty_database_url, "order.expire", json.loads(page["payload.json"]), rules=json.loads(page["rules.json"]))
    console.cache_clear()
    capfd.readouterr()

    assert cli.run(["rules", "explain", "1", "--values", "--database-url", empty_database_url]) == 0

    assert capfd.readouterr().out == page["explained.txt"]
