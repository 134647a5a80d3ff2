"""Awaiting: `publish` and `publish_many` for async engines, connections and sessions. No second implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from prefect_claim_dispatch.databases import Bind
from prefect_claim_dispatch.engines import translated
from prefect_claim_dispatch.errors import ConfigurationError, DatabaseUnavailableError
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.publishing import publish, publish_many

AsyncBind = AsyncEngine | AsyncConnection | AsyncSession

P = ParamSpec("P")
R = TypeVar("R")


def _awaited(function: Callable[Concatenate[Bind, P], R]) -> Callable[Concatenate[AsyncBind, P], Awaitable[R]]:
    @wraps(function)
    async def run(bind: AsyncBind, *arguments: P.args, **options: P.kwargs) -> R:
        match bind:
            case AsyncEngine():
                with translated():
                    connection = await _connected(bind)
                    try:
                        async with connection.begin():
                            return await connection.run_sync(function, *arguments, **options)
                    finally:
                        await connection.close()
            case AsyncConnection() | AsyncSession():
                return await bind.run_sync(function, *arguments, **options)
            case _:
                kind, advice = type(bind).__name__, function.__name__
                msg = f"bind must be an AsyncEngine, AsyncConnection or AsyncSession, got {kind}; or call {advice}"
                raise ConfigurationError(msg)

    return run


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    try:
        return await engine.connect()
    except OSError as error:  # asyncpg's, which SQLAlchemy passes on as it is
        msg = f"the database can't be reached: {redacted(str(error), 300)}; check the engine's URL"
        raise DatabaseUnavailableError(msg) from error


apublish = _awaited(publish)
apublish_many = _awaited(publish_many)
