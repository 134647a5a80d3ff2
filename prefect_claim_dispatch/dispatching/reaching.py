"""Whether the Prefect API can be reached: without it nothing is claimed."""

from __future__ import annotations

import contextvars
from collections.abc import Generator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.errors import PrefectUnavailableError
from prefect_claim_dispatch.outcomes import redacted

EVERY = 10.0
"""Seconds that an answer of the API is believed: what begins without its API is given back, and loses no attempt."""

ANSWERS_WITHIN = 10.0


@contextmanager
def impatient_client(*, retries: int = 0, answers_within: float | None = None) -> Generator[SyncPrefectClient]:
    """A client of the API that tries again *retries* times; Prefect's own would take minutes, with nothing in the log.

    An answer takes *answers_within* seconds at most, `ANSWERS_WITHIN` unless given.

    Not by `temporary_settings`, which reads every source of settings anew: 26 ms, where a copy takes 0.2.
    """
    now = get_settings_context()
    client_settings = now.settings.client.model_copy(update={"max_retries": retries})
    settings = now.settings.model_copy(update={"client": client_settings})
    with (
        SettingsContext(profile=now.profile, settings=settings),
        get_client(httpx_settings={"timeout": answers_within or ANSWERS_WITHIN}, sync_client=True) as client,
    ):
        yield client


def require_api() -> None:
    """Ask the API for a sign of life, once and not for long: whoever claims waits for it.

    Raises:
        PrefectUnavailableError: there was none within 10 seconds.
    """
    try:
        with impatient_client() as client:
            problem = client.api_healthcheck()
    except (httpx.HTTPError, RuntimeError) as error:
        problem = error
    if problem is not None:
        reason = redacted(str(problem) or type(problem).__name__, 200)
        msg = f"the Prefect API can't be reached ({reason}); check PREFECT_API_URL, nothing was claimed"
        raise PrefectUnavailableError(msg)


class ApiWatch:
    """Asks before claims, every ten seconds at most. The flow run that this is for was made by the API a moment ago.

    To be made in the flow's own context: whichever thread asks, it is the API of its settings.
    """

    def __init__(self) -> None:
        self._answered_at = elapsed_clock()
        self._context = contextvars.copy_context()

    def require(self) -> None:
        """Nothing, where the API has answered of late or answers now.

        Raises:
            PrefectUnavailableError: as `require_api`.
        """
        if elapsed_clock() - self._answered_at >= EVERY:
            # Of a thread that tells of a run's end, a copy: no context can be entered by two at once.
            self._context.copy().run(require_api)
            self._answered_at = elapsed_clock()

    def is_away(self) -> bool:
        """Ask now, whenever it was that the API answered last."""
        self._answered_at = float("-inf")
        try:
            self.require()
        except PrefectUnavailableError:
            return True
        return False
