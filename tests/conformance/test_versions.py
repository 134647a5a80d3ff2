"""The versions of PostgreSQL that are promised are the ones that are tested."""

from __future__ import annotations

import pytest

from tests.conftest import shared_postgres
from tests.kit import postgres

NEWEST, *OLDER = postgres.PROMISED


@pytest.mark.parametrize("major", [NEWEST, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in OLDER)])
def test_promised_postgresql_is_among_the_tested(major: int) -> None:
    """Skipped by name where it is not there: nothing else in the run would tell."""
    name = f"postgresql-{major}"
    if name not in postgres.available():
        pytest.skip(f"{name} is not tested: it is not there (make postgresql, or install it)")

    with shared_postgres(name).connect() as connection:
        assert connection.info.server_version // 10_000 == major
