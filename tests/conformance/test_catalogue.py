"""A payload that its type's class can't read back reaches no database, whichever way it is published."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from prefect_claim_dispatch import (
    Draft,
    Publisher,
    action_type,
    apublish,
    apublish_many,
    operations,
    publish,
    publish_many,
    publish_sql,
    testing,
)
from prefect_claim_dispatch.errors import InvalidPayloadError, RegistrationError
from prefect_claim_dispatch.processors import Registry, processor
from tests.conformance.test_publishing import count, statements_of

pytestmark = pytest.mark.usefixtures("empty_catalogue")

GOOD = {"to": "ada"}
BAD = {"to": 7}


class Welcome(BaseModel):
    to: str


def draft(payload: Any) -> Draft:
    return Draft().type("email.welcome").payload(payload)


def awaited(engine: Engine, publishing: Callable[[AsyncEngine], Awaitable[Any]]) -> None:
    """Do *publishing* on an async twin of *engine*."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        pytest.importorskip("aiosqlite")
        url = url.set(drivername="sqlite+aiosqlite")

    async def run() -> None:
        twin = create_async_engine(url)
        try:
            await publishing(twin)
        finally:
            await twin.dispose()

    asyncio.run(run())


WAYS: dict[str, Callable[[Engine, Any], Any]] = {
    "publish": lambda engine, payload: publish(engine, "email.welcome", payload),
    "publish_many": lambda engine, payload: publish_many(engine, [draft(GOOD), draft(payload)]),
    "draft": lambda engine, payload: Publisher(engine).draft().payload(payload).type("email.welcome").commit(),
    "closure": lambda engine, payload: Publisher(engine).publish(lambda it: it.payload(payload).type("email.welcome")),
    "quick": lambda engine, payload: Publisher(engine).quick("email.welcome", None, payload),
    "publish_sql": lambda _, payload: publish_sql(draft(payload), "sqlite"),
    "apublish": lambda engine, payload: awaited(engine, lambda twin: apublish(twin, "email.welcome", payload)),
    "apublish_many": lambda engine, payload: awaited(engine, lambda twin: apublish_many(twin, [draft(payload)])),
}


@pytest.mark.parametrize("way", WAYS)
def test_unfit_payload_is_refused_before_any_sql(engine: Engine, way: str) -> None:
    """Each way to publish, or the catalogue would promise more than it keeps."""
    action_type("email.welcome", Welcome)

    with statements_of(engine) as sent, pytest.raises(InvalidPayloadError, match="to: Input should be a valid string"):
        WAYS[way](engine, BAD)

    assert sent == []
    assert count(engine) == 0


@pytest.mark.parametrize("payload", [GOOD, Welcome(to="ada")], ids=["dict", "instance"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "publish_sql"])
def test_fit_payload_is_published_as_ever(engine: Engine, way: str, payload: Any) -> None:
    """And stored as it was given: validating fills in nothing."""
    action_type("email.welcome", Welcome)

    WAYS[way](engine, payload)

    assert {row.payload["to"] for row in operations.find(engine)} == {"ada"}


def test_refusal_in_a_later_chunk_takes_the_batch_along(engine: Engine) -> None:
    """All or nothing, as with every other refusal."""
    action_type("email.welcome", Welcome)

    with pytest.raises(InvalidPayloadError):
        publish_many(engine, [*[draft(GOOD)] * 1500, draft(BAD)])

    assert count(engine) == 0


def test_gate_is_asked_before_the_class(engine: Engine) -> None:
    """What a gate keeps back is not published, so nothing needs to fit: "only if there is an address"."""
    action_type("email.welcome", Welcome)

    receipt = Publisher(engine).quick("email.welcome", None, {"to": None}, when=lambda payload: payload["to"])

    assert receipt.outcome == "skipped"


def test_row_of_plain_sql_that_does_not_fit_goes_dead_with_the_same_words(engine: Engine) -> None:
    """Other languages insert what they like; the processor's guard asks the catalogue too."""
    publish(engine, "email.welcome", BAD)
    publish(engine, "email.welcome", GOOD)
    action_type("email.welcome", Welcome)
    seen: list[Any] = []
    registry = Registry()

    @processor("email.*", registry=registry)
    def welcome(payload) -> None:  # type: ignore[no-untyped-def]
        seen.append(payload)

    report = testing.drain(engine, registry)

    assert (report.dead, report.processed) == (1, 1)
    assert seen == [Welcome(to="ada")]
    (dead,) = testing.published(engine, status="dead")
    assert dead.errors[-1]["message"] == "to: Input should be a valid string"


class TestSetting:
    """CLAIM_DISPATCH_CATALOGUE, for the claim flow and for drain."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        """Write a module that the setting names; returns its name."""
        monkeypatch.syspath_prepend(tmp_path)

        def write(source: str) -> str:
            name = f"catalogue_{os.urandom(4).hex()}"
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.setenv("CLAIM_DISPATCH_CATALOGUE", name)
            return name

        return write

    @pytest.mark.parametrize("processors", [None, (), Registry()], ids=["settings", "modules", "registry"])
    def test_modules_are_imported_before_anything_is_claimed(
        self, engine: Engine, module: Callable[[str], str], processors: Any
    ) -> None:
        """With its password-free reason when that fails."""
        name = module("raise ConnectionError('postgresql://app:hunter2@db/app')")
        publish(engine, "email.welcome", GOOD)

        with pytest.raises(RegistrationError, match=f"catalogue module '{name}' can't be imported") as refused:
            testing.drain(engine, processors)

        assert "hunter2" not in str(refused.value)
        assert testing.published(engine)[0].status == "pending"

    def test_processors_find_their_classes(self, engine: Engine, module: Callable[[str], str]) -> None:
        """Though the module of processors imports nothing of the catalogue."""
        module(
            "from dataclasses import dataclass\n"
            "from prefect_claim_dispatch import action_type\n"
            "@action_type('email.welcome')\n"
            "@dataclass\n"
            "class Welcome:\n"
            "    to: str\n"
        )
        publish(engine, "email.welcome", GOOD)
        seen: list[str] = []
        registry = Registry()
        processor("email.welcome", registry=registry)(lambda payload: seen.append(payload.to))

        assert testing.drain(engine, registry).processed == 1
        assert seen == ["ada"]
