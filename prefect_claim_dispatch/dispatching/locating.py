"""Where the action table is, for the claim flow and for the processes that its runs are in."""

from __future__ import annotations

from prefect.blocks.system import Secret

from prefect_claim_dispatch import engines
from prefect_claim_dispatch.errors import ConfigurationError


def database_url(database: str | None) -> str | None:
    """The URL that the flow parameter *database* means: a URL, or the name of a Secret block; None for the settings'.

    Raises:
        ConfigurationError: there is no such block, or the URL holds a password.
    """
    if database is None:
        return None
    if "://" not in database:
        try:
            return Secret.load(database, _sync=True).get()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportAttributeAccessIssue, reportCallIssue]
        except ValueError as error:
            msg = f"no Prefect Secret block is called {database!r}; create it, or set CLAIM_DISPATCH_DATABASE_URL"
            raise ConfigurationError(msg) from error
    if engines.parsed_url(database).password is not None:
        msg = (
            "the parameter 'database' holds a password, and flow parameters are shown in the UI; "
            "put the URL into a Prefect Secret block and give its name"
        )
        raise ConfigurationError(msg)
    return database
