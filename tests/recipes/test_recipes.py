"""The programs of docs/recipes.md, run as they stand there: committed with the order, or gone with it."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, make_url, select, text

from prefect_claim_dispatch import publish
from prefect_claim_dispatch.schema import actions_table
from tests.kit.documents import ROOT, blocks

TABLE = actions_table()
RECIPES = blocks("docs/recipes.md")
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
PAID, DECLINED = 10, 1000

Post = Callable[[int], int]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Import a recipe as a module of its own."""
    loaded: list[str] = []

    def load_recipe(name: str) -> ModuleType:
        file = tmp_path / name
        file.write_text(RECIPES[name], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        loaded.append(file.stem)
        spec.loader.exec_module(module)
        return module

    yield load_recipe
    for name in loaded:
        sys.modules.pop(name)


@contextmanager
def fastapi_session(load: Load) -> Generator[Post]:
    module = load("fastapi_session.py")
    with TestClient(module.app) as client:
        yield lambda total: client.post("/orders", json={"total": total}).status_code
    module.engine.dispose()


@contextmanager
def fastapi_async(load: Load) -> Generator[Post]:
    module = load("fastapi_async.py")
    with TestClient(module.app) as client:
        yield lambda total: client.post("/orders", json={"total": total}).status_code


@contextmanager
def flask_session(load: Load) -> Generator[Post]:
    module = load("flask_session.py")
    with module.app.test_client() as client:
        yield lambda total: client.post("/orders", json={"total": total}).status_code
    module.engine.dispose()


def orders(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT total FROM orders ORDER BY id")).scalars())


def actions(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


def assert_only_the_paid_order_expires(engine: Engine) -> None:
    assert orders(engine) == [PAID]
    [action] = actions(engine)
    assert (action.type, action.payload, action.status) == ("order.expire", {"order_id": 1}, "pending")
    assert action.end_at - action.created_at == timedelta(minutes=15)


@pytest.mark.parametrize("served", [fastapi_session, fastapi_async, flask_session])
def test_web_frameworks_with_sqlalchemy(
    served: Callable[[Load], Any], load: Load, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of 201 means that order and action are committed; any other, that neither was ever there."""
    url = make_url(database_url)
    if served is fastapi_async:
        url = url.set(drivername=ASYNC_DRIVERS[url.get_backend_name()])
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))

    with served(load) as post:
        assert (post(PAID), post(DECLINED)) == (201, 402)

    assert_only_the_paid_order_expires(engine)


def test_django_on_its_own_connection(database_url: str, engine: Engine, tmp_path: Path) -> None:
    """`transaction.atomic` is the transaction, and no SQLAlchemy connection is anywhere."""
    run = run_django("django_served.py", tmp_path, database_url, str(PAID), str(DECLINED))

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"statuses": [201, 402], "again": None}
    assert_only_the_paid_order_expires(engine)
    assert actions(engine)[0].idempotency_key == "order:1"


def test_django_tests_see_what_was_published(database_url: str, tmp_path: Path) -> None:
    """Django's test database has only what Django's migrations make, and a TestCase commits nothing."""
    run = run_django("django_commanded.py", tmp_path, database_url, "test", "shop")

    assert run.returncode == 0, run.stderr
    assert "Ran 2 tests" in run.stderr


def test_django_migration_leaves_a_table_alone_that_is_there(database_url: str, engine: Engine, tmp_path: Path) -> None:
    """In production `claim-dispatch db upgrade` may have made it, with actions in it."""
    publish(engine, "before")

    run = run_django("django_commanded.py", tmp_path, database_url, "migrate", "shop")

    assert run.returncode == 0, run.stderr
    assert [action.type for action in actions(engine)] == ["before"]


def run_django(script: str, folder: Path, database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Write the recipe's files into *folder* and run *script* of this folder on them."""
    for name, code in RECIPES.items():
        if name.startswith("django/"):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code, encoding="utf-8")
            (file.parent / "__init__.py").touch()
    path = str(Path(__file__).with_name(script))
    command = [sys.executable, "-W", "error", path, str(folder / "django")]
    command += [json.dumps(django_database(database_url)), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def django_database(database_url: str) -> Mapping[str, Any]:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.database}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username,
        "HOST": url.query["host"],
    }


def bare(database_url: str) -> Any:
    """A connection of the bare driver."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return sqlite3.connect(url.database or "")
    return psycopg.connect(host=str(url.query["host"]), user=url.username, dbname=url.database)


def test_bare_drivers(load: Load, database_url: str, engine: Engine) -> None:
    """No SQLAlchemy connection in sight, and the same promise."""
    is_sqlite = engine.dialect.name == "sqlite"
    recipe = load("sqlite3_bare.py" if is_sqlite else "psycopg_bare.py")
    identity = "integer primary key" if is_sqlite else "bigint generated always as identity"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE orders (id {identity}, total integer)"))

    with closing(bare(database_url)) as connection:
        recipe.place_order(connection, PAID)
        with pytest.raises(recipe.DeclinedError):
            recipe.place_order(connection, DECLINED)

    assert_only_the_paid_order_expires(engine)


def test_sqlite_will_not_commit_before_the_row_is_fetched(sqlite_url: str) -> None:
    """What the recipe warns of."""
    from prefect_claim_dispatch import Draft, publish_sql

    with closing(bare(sqlite_url)) as connection:
        cursor = connection.execute(*publish_sql(Draft().type("a"), "sqlite"))
        with pytest.raises(sqlite3.OperationalError, match="in progress"):
            connection.commit()
        cursor.fetchone()
        connection.commit()


def test_plain_sql_publishes_once_for_each_key(database_url: str, engine: Engine) -> None:
    """Whatever speaks SQL may publish."""
    sql = RECIPES[f"publish.{engine.dialect.name}.sql"]

    with closing(bare(database_url)) as connection:
        first = connection.execute(sql).fetchone()
        connection.rollback()
        second = connection.execute(sql).fetchone()
        connection.commit()
        third = connection.execute(sql).fetchone()
        connection.commit()

    [action] = actions(engine)
    assert first is not None
    assert second == (action.id,)
    assert third is None
    assert (action.type, action.payload, action.idempotency_key) == ("order.expire", {"order_id": 7}, "order:7")
    assert timedelta(minutes=15) - (action.end_at - action.created_at) < timedelta(seconds=1)


def test_plain_sql_replaces_what_is_pending(database_url: str, engine: Engine) -> None:
    """Debouncing by one statement; what has begun is left alone."""
    sql = RECIPES["replace.postgresql.sql"]
    if engine.dialect.name == "sqlite":
        sql = sql.replace("now() + interval '1 hour'", "datetime('now', '+1 hour')").replace("now()", "datetime('now')")

    with closing(bare(database_url)) as connection:
        first = connection.execute(RECIPES[f"publish.{engine.dialect.name}.sql"]).fetchone()
        replaced = connection.execute(sql).fetchone()
        connection.commit()
        [action] = actions(engine)
        connection.execute("UPDATE action_logs SET status = 'cancelled', settled_at = created_at")
        too_late = connection.execute(sql).fetchone()
        connection.commit()

    assert first == replaced == (action.id,)
    assert action.end_at - action.created_at > timedelta(minutes=59)
    assert too_late is None


def test_rules_of_plain_sql_are_rules(database_url: str, engine: Engine) -> None:
    """The reserved keys are the interface."""
    with closing(bare(database_url)) as connection:
        connection.execute(RECIPES["rules.postgresql.sql"]).fetchone()
        connection.commit()

    [action] = actions(engine)
    assert action.payload["__rules"] == {">": [{"var": "payload.total"}, 0]}
    assert action.payload["__meta"] == {"source": "billing"}


def test_every_recipe_is_run() -> None:
    """A program that nobody runs is wrong before long."""
    source = Path(__file__).read_text(encoding="utf-8")
    unnamed = [name for name in RECIPES if not name.startswith("django/") and name not in source]

    assert {name.replace(".sqlite.", ".postgresql.") for name in unnamed} == {"publish.postgresql.sql"}
