"""Whether the Prefect API serves us: without it nothing is claimed. And which server it is that does."""

from __future__ import annotations

import contextvars
import hashlib
import logging
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import SettingsContext, get_settings_context

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.errors import PrefectUnavailableError
from prefect_claim_dispatch.outcomes import redacted
from prefect_claim_dispatch.schema import SERVER_LENGTH

logger = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds that an answer of the API is believed: what begins without its API is given back, and loses no attempt."""

ANSWERS_WITHIN = 10.0

BUSY_PAUSES = (0.5, 1.5)
"""Before the question is asked again of a server that answers 429 or 503: SQLite was locked for a moment."""

CREATED_WITHIN, FIRST_PAUSE = 60.0, 0.5

QUESTION: Final[Any] = "/block_types/slug/{slug}"
"""What every server and Cloud can answer, to those alone whom it serves: `/health` is open to everybody."""

_WORKSPACE: Final = re.compile(r"/accounts/[0-9a-f-]+/workspaces/[0-9a-f-]+")
_NOT_FOUND, _BUSY, _REFUSED = 404, frozenset({429, 503}), frozenset({401, 403})


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
    """Ask the API something that it answers to those alone whom it serves, and not for long: whoever claims waits.

    Raises:
        PrefectUnavailableError: there was no answer within 10 seconds, or a refusal.
    """
    try:
        with impatient_client() as client:
            _answer(client)
    except httpx.HTTPStatusError as error:
        raise PrefectUnavailableError(_refusal(error.response.status_code)) from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise PrefectUnavailableError(_unreachable(error)) from error


def server_identity(client: SyncPrefectClient) -> str | None:
    """A short name of the server, or of the workspace in Prefect Cloud; None where it has nothing to tell it by.

    The same by whatever address it is reached, and as long as its database lives. By the id of a block type that each
    server registers for itself and protects. A copy of the database has the identity of the original.

    Raises:
        httpx.HTTPError: it can't be asked.
    """
    workspace = _WORKSPACE.search(str(client.api_url))
    told = workspace.group() if workspace is not None else _answer(client).get("id")
    return None if told is None else hashlib.sha256(str(told).encode()).hexdigest()[:SERVER_LENGTH]


def _answer(client: SyncPrefectClient) -> dict[str, Any]:
    """What the API says to `QUESTION`; nothing where it has no such block type."""
    for pause in BUSY_PAUSES:
        try:
            return _asked(client)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _BUSY:
                raise
            time.sleep(pause)
    return _asked(client)


def _asked(client: SyncPrefectClient) -> dict[str, Any]:
    try:
        return client.request("GET", QUESTION, path_params={"slug": "secret"}).json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code != _NOT_FOUND:
            raise
        return {}


def _unreachable(error: Exception) -> str:
    reason = redacted(str(error) or type(error).__name__, 200)
    return f"the Prefect API can't be reached ({reason}); check PREFECT_API_URL, nothing was claimed"


def _refusal(status: int) -> str:
    if status in _REFUSED:
        return (
            f"the Prefect API refuses us ({status}): set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY for Cloud, "
            "as the server wants it; nothing was claimed"
        )
    return f"the Prefect API answers {status}; look at the server, and check PREFECT_API_URL; nothing was claimed"


def create_flow_run(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> FlowRun:
    """A run of *flow* to be executed here. A server that is too busy is asked again, for a minute at most.

    Only where it has answered that it did not do it: of a lost answer nobody knows, and there might be two.

    Raises:
        PrefectUnavailableError: there is none.
    """
    gives_up_at, pause = elapsed_clock() + CREATED_WITHIN, FIRST_PAUSE
    while True:
        try:
            with impatient_client(answers_within=30.0) as client:
                return client.create_flow_run(flow, parameters=flow.serialize_parameters(dict(parameters)))
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if not (status in _BUSY or error.response.is_server_error) or elapsed_clock() + pause >= gives_up_at:
                raise PrefectUnavailableError(_refusal(status)) from error
            logger.warning("the Prefect server could not create the flow run (%s), trying again", status)
        except (httpx.HTTPError, RuntimeError) as error:
            raise PrefectUnavailableError(_unreachable(error)) from error
        time.sleep(pause)
        pause = min(2 * pause, 8.0)


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
