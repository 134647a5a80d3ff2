"""Prefect's API, as the deployment lane asks it: find a deployment, create its runs, read their states, end them.

Every call is safe to repeat: runs are created under an idempotency key, and states are set only where they are wanted.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.dispatching.reaching import impatient_client, server_identity
from prefect_claim_dispatch.dispatching.run_states import WITHDRAWN, RunSeen
from prefect_claim_dispatch.errors import DeploymentNotFoundError, PrefectUnavailableError
from prefect_claim_dispatch.outcomes import redacted

CREATED_AT_ONCE: Final = 100
READ_AT_ONCE: Final = 200
ANSWERS_WITHIN: Final = 30.0
BELIEVED_FOR: Final = 60.0
"""Seconds that a deployment is taken to be as it was."""

PAUSES: Final = (0.0, 0.3, 1.0)
"""Before each try of a creation. SQLite under load refuses items, sometimes all, and takes them a moment later."""

BULK: Final[Any] = "/deployments/{id}/create_flow_run/bulk"
"""A route that the client of this version does not know, and the server does."""

_NOT_FOUND, _NO_SUCH_METHOD = 404, 405
_REFUSES_ITSELF: Final = frozenset({401, 403, 408, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSeen:
    """A deployment as the API tells of it."""

    id: UUID
    name: str
    asked_for: frozenset[str]
    required: frozenset[str]
    cancels_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A run to be created. The same *key* twice is one run."""

    key: str
    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """What came of orders, by key: run ids; reasons of refusals; and the error after which nothing more was tried."""

    run_ids: dict[str, str]
    refused: dict[str, str]
    error: PrefectUnavailableError | DeploymentNotFoundError | None = None


class FlowRuns:
    """The runs of deployments, by the API that Prefect's settings name. For one thread."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, DeploymentSeen | None]] = {}
        self._has_bulk = True
        self._server: tuple[str | None] | None = None

    def server(self) -> str | None:
        """The identity of the server that the API is of, asked once; None where it can't be told from another."""
        if self._server is None:
            with api() as client:
                self._server = (server_identity(client),)
        return self._server[0]

    def deployment(self, name: str) -> DeploymentSeen | None:
        """The deployment called *name*; None when there is none. An answer is believed for a minute.

        Raises:
            PrefectUnavailableError: the API can't be asked; and so in all that follow.
        """
        asked_at, seen = self._known.get(name, (float("-inf"), None))
        if elapsed_clock() - asked_at >= BELIEVED_FOR:
            with api() as client:
                seen = _deployment(client, name)
            self._known[name] = elapsed_clock(), seen
        return seen

    def create(self, deployment: DeploymentSeen, orders: Sequence[Order]) -> Creation:
        """Create a run for each of *orders*, 100 at most, in bulk where the server can; tries again what it refuses."""
        made, refused = dict[str, str](), dict[str, str]()
        try:
            self._create_in_bulk(deployment, orders, made)
            with api() as client:
                for order in orders:
                    if order.key not in made:
                        _create_one(client, deployment, order, made, refused)
        except PrefectUnavailableError as error:
            return Creation(run_ids=made, refused=refused, error=error)
        except DeploymentNotFoundError as error:
            self._known.pop(deployment.name, None)
            return Creation(run_ids=made, refused=refused, error=error)
        return Creation(run_ids=made, refused=refused)

    def _create_in_bulk(self, deployment: DeploymentSeen, orders: Sequence[Order], made: dict[str, str]) -> None:
        """Note in *made* what was created; what is refused again and again is not: asked for singly, it is told why."""
        for number, pause in enumerate(PAUSES, start=1):
            missing = [order for order in orders if order.key not in made]
            if not missing or not self._has_bulk:
                return
            time.sleep(pause)
            try:
                with api() as client:
                    self._create_batch(client, deployment, missing, made)
            except PrefectUnavailableError:
                # The reply may be lost, and the runs be there: the same keys again find them.
                if number == len(PAUSES):
                    raise

    def _create_batch(
        self, client: SyncPrefectClient, deployment: DeploymentSeen, orders: Sequence[Order], made: dict[str, str]
    ) -> None:
        try:
            answer = client.request(
                "POST",
                BULK,
                path_params={"id": deployment.id},
                json=[_document(order) for order in orders],
            )
        except httpx.HTTPStatusError as error:
            if _is_passing(error.response):
                raise
            if error.response.status_code not in (_NOT_FOUND, _NO_SUCH_METHOD):
                return  # too much at once, or an item that spoils all of them: asked for singly, each is told
            # An older server has no such route, and says the same of that as of a deployment that is gone.
            _require(client, deployment)
            self._has_bulk = False
            return
        for order, result in zip(orders, answer.json()["results"], strict=True):
            if result["status"] == "CREATED":
                made[order.key] = str(result["flow_run_id"])

    def states(self, run_ids: Iterable[str]) -> dict[str, RunSeen]:
        """What the API tells of those of *run_ids* that it knows."""
        wanted = [run_id for run_id in run_ids if _is_id(run_id)]
        return {run["id"]: _seen(run) for run in self._filtered({"id": {"any_": wanted}}, wanted)}

    def created(self, keys: Sequence[str]) -> dict[str, str]:
        """The ids of the runs that were created under *keys*, by key."""
        return {run["idempotency_key"]: run["id"] for run in self._filtered({"idempotency_key": {"any_": keys}}, keys)}

    def withdraw(self, run_id: str) -> bool:
        """Cancel a run that waits, under a name of ours; whether it is cancelled now and nobody has begun it."""
        message = "waited for too long to begin; its action was released"
        with api() as client:
            try:
                before = client.read_flow_run(UUID(run_id))
                if before.run_count or before.state_type not in (StateType.SCHEDULED, StateType.PENDING):
                    return False
                client.set_flow_run_state(
                    UUID(run_id), State(type=StateType.CANCELLED, name=WITHDRAWN, message=message)
                )
                # It may have begun in between; then it is not given to another.
                after = client.read_flow_run(UUID(run_id))
            except ObjectNotFound:
                return False
        return after.run_count == 0 and after.state_name == WITHDRAWN

    def bury(self, run_id: str) -> bool:
        """Call a run crashed whose process keeps no lease any more; whether it is now, or is gone."""
        message = "it stopped renewing its lease; its action is retried"
        with api() as client:
            try:
                client.set_flow_run_state(UUID(run_id), State(type=StateType.CRASHED, message=message))
                return client.read_flow_run(UUID(run_id)).state_type == StateType.CRASHED
            except ObjectNotFound:
                return True

    def _filtered(self, condition: dict[str, Any], wanted: Sequence[str]) -> list[dict[str, Any]]:
        if not wanted:
            return []
        body = {"flow_runs": condition, "limit": READ_AT_ONCE}
        with api() as client:
            return client.request("POST", "/flow_runs/filter", json=body).json()


@contextmanager
def api() -> Generator[SyncPrefectClient]:
    """A client of the API that tries once again, as a busy server asks for, and not for minutes.

    Raises:
        PrefectUnavailableError: the API can't be reached, is overloaded or refuses us.
    """
    try:
        with impatient_client(retries=1, answers_within=ANSWERS_WITHIN) as client:
            yield client
    except (httpx.HTTPError, RuntimeError) as error:
        reason = redacted(str(error) or type(error).__name__, 200)
        msg = f"the Prefect API does not serve us ({reason}); check PREFECT_API_URL, claims are kept as they are"
        raise PrefectUnavailableError(msg) from error


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentSeen | None:
    try:
        found = client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None
    schema: dict[str, Any] = found.parameter_openapi_schema or {}
    required = frozenset(schema.get("required", ())) - frozenset(found.parameters or {})
    return DeploymentSeen(
        id=found.id,
        name=name,
        asked_for=frozenset(schema.get("properties", ())),
        required=required,
        cancels_new=cancels_new_runs(found),
    )


def cancels_new_runs(deployment: DeploymentResponse) -> bool:
    """Whether it has a concurrency limit that cancels the runs which find no slot, instead of letting them wait."""
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    return (
        limit is not None and options is not None and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW
    )


def _require(client: SyncPrefectClient, deployment: DeploymentSeen) -> None:
    found = _deployment(client, deployment.name)
    if found is None or found.id != deployment.id:
        raise DeploymentNotFoundError(deployment.name)


def _create_one(
    client: SyncPrefectClient,
    deployment: DeploymentSeen,
    order: Order,
    made: dict[str, str],
    refused: dict[str, str],
) -> None:
    try:
        answer = client.request(
            "POST",
            "/deployments/{id}/create_flow_run",
            path_params={"id": deployment.id},
            json=_document(order),
        )
    except httpx.HTTPStatusError as error:
        response = error.response
        if _is_passing(response):
            raise
        if response.status_code == _NOT_FOUND:
            _require(client, deployment)
        refused[order.key] = redacted(f"Prefect refuses the run ({response.status_code}): {response.text}", 500)
    else:
        made[order.key] = str(answer.json()["id"])


def _is_passing(response: httpx.Response) -> bool:
    """Whether the refusal is of us, or of this moment, and not of what was asked for."""
    return response.is_server_error or response.status_code in _REFUSES_ITSELF


def _document(order: Order) -> dict[str, Any]:
    return {
        "name": order.name,
        "idempotency_key": order.key,
        "parameters": order.parameters,
        "state": {"type": StateType.SCHEDULED.value},
    }


def _seen(run: dict[str, Any]) -> RunSeen:
    state: dict[str, Any] = run.get("state") or {}
    return RunSeen(
        type=run.get("state_type") or "",
        name=run.get("state_name") or "",
        message=state.get("message") or "",
        has_begun=bool(run.get("run_count")),
    )


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
