"""What importing the package costs an application that only publishes."""

from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = ("prefect", "alembic", "cyclopts", "rich")


def modules_imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter imports for *code*."""
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}


def imported_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter imports for *code*."""
    return {module.partition(".")[0] for module in modules_imported_by(code)}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_brings_no_prefect() -> None:
    """A web application keeps its own FastAPI, and does not wait a second for Prefect's."""
    imported = imported_by("import prefect_claim_dispatch")

    assert "prefect_claim_dispatch" in imported
    assert imported.isdisjoint(FOREIGN)


def test_import_brings_no_orm() -> None:
    """Whoever publishes in a session has imported it; for all others it would be a fifth of what they wait for."""
    modules = modules_imported_by("from prefect_claim_dispatch import publish")

    assert "sqlalchemy" in modules
    assert "sqlalchemy.orm" not in modules


def test_publishing_brings_no_prefect(sqlite_url: str) -> None:
    """What is imported late would be imported in somebody's first request."""
    imported = imported_by(
        "from prefect_claim_dispatch import Publisher, publish, publish_many\n"
        f"publish({sqlite_url!r}, 'email.welcome', {{'a': 1}}, rules={{'var': 'payload.a'}})\n"
        f"Publisher({sqlite_url!r}).draft('email.welcome').commit()\n"
    )

    assert "sqlalchemy" in imported
    assert imported.isdisjoint(FOREIGN)


def test_publishing_by_the_catalogue_brings_no_prefect(sqlite_url: str) -> None:
    """The module of action types is what the web application and the processors share."""
    imported = imported_by(
        "from dataclasses import dataclass\n"
        "from prefect_claim_dispatch import action_type, publish\n"
        "@action_type('email.welcome')\n"
        "@dataclass\n"
        "class Welcome:\n"
        "    to: str\n"
        f"publish({sqlite_url!r}, 'email.welcome', Welcome('ada'))\n"
    )

    assert "sqlalchemy" in imported
    assert imported.isdisjoint(FOREIGN)


def test_looking_at_what_was_published_brings_no_prefect(sqlite_url: str) -> None:
    """The tests of a web application run where only the core is installed."""
    imported = imported_by(
        "from datetime import UTC, datetime\n"
        "from prefect_claim_dispatch import publish, testing\n"
        f"publish({sqlite_url!r}, 'email.welcome', {{'a': 1}})\n"
        "with testing.at(datetime.now(UTC)):\n"
        f"    testing.assert_published({sqlite_url!r}, 'email.welcome', count=1)\n"
        f"    assert len(testing.published({sqlite_url!r})) == 1\n"
    )

    assert "sqlalchemy" in imported
    assert imported.isdisjoint(FOREIGN)


def test_drain_without_prefect_says_what_to_install(sqlite_url: str) -> None:
    """A missing extra is told as one, and any other missing module as what it is."""
    code = (
        "import sys\n"
        "from prefect_claim_dispatch import errors, testing\n"
        "sys.modules[sys.argv[1]] = None\n"
        "try:\n"
        f"    testing.drain({sqlite_url!r})\n"
        "except ImportError as error:\n"
        "    print(error.name)\n"
        "except errors.MissingExtraError as error:\n"
        "    print(error)\n"
    )

    told = [
        subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True, check=True).stdout.strip()
        for module in ("prefect", "prefect_claim_dispatch.dispatching.draining")
    ]

    assert told == [
        "testing.drain needs the extra 'prefect': pip install 'prefect-claim-dispatch[prefect]'",
        "prefect_claim_dispatch.dispatching.draining",
    ]


def test_import_brings_no_postgresql() -> None:
    """SQLAlchemy's dialects of it take a sixth of the time; an engine that needs them has imported them."""
    loaded = python("import sys, prefect_claim_dispatch; print('sqlalchemy.dialects.postgresql' in sys.modules)")

    assert loaded.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["processor", "claim_dispatch"])
def test_names_that_need_prefect_say_what_to_install(name: str) -> None:
    """One line that names the extra, and not httpx, which comes with Prefect and is missed first."""
    code = f"import sys; sys.modules |= dict.fromkeys(['httpx', 'prefect'])\nfrom prefect_claim_dispatch import {name}"
    run = python(code)

    needs = f"{name} needs the extra 'prefect': pip install 'prefect-claim-dispatch[prefect]'"
    assert run.stderr.splitlines()[-1] == f"prefect_claim_dispatch.errors.MissingExtraError: {needs}"


def test_postgresql_without_a_driver_says_what_to_install() -> None:
    """The core alone has SQLite only; psycopg2 needs no psycopg 3."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from prefect_claim_dispatch.engines import parsed_url\n"
        "print(parsed_url('postgresql+psycopg2://host/db').drivername)\n"
        "parsed_url('postgresql://host/db')"
    )

    needs = "PostgreSQL needs the extra 'postgres': pip install 'prefect-claim-dispatch[postgres]'"
    run = python(code)
    assert run.stdout.strip() == "postgresql+psycopg2"
    assert run.stderr.splitlines()[-1] == f"prefect_claim_dispatch.errors.MissingExtraError: {needs}"
