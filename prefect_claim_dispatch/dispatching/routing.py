"""Routing: which of the due actions have a processor here, and by which policy their attempts are judged."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.deployments import LEASE, QUEUED_AT_MOST
from prefect_claim_dispatch.dispatching.isolation import preload
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.registrations import Deployment, Processor
from prefect_claim_dispatch.registry import Registry


class Routing:
    """The processors of *registry*; what one of them does not say of its retries is in *default_policy*."""

    def __init__(self, registry: Registry, default_policy: RetryPolicy) -> None:
        self._registry = registry
        preload(registry.isolated_modules)
        self._default_policy = default_policy
        self._policies: dict[Processor, RetryPolicy] = {}

    def match(self, type_: str) -> Processor | None:
        """The processor of actions of that type; None when nobody here does them."""
        return self._registry.match(type_)

    def is_isolated(self, type_: str) -> bool:
        """Whether actions of that type run in a process of their own, and can't take this one with them."""
        processor = self.match(type_)
        return processor is not None and processor.isolation is not None

    def max_running(self, type_: str) -> int | None:
        """How many actions of that type may be claimed at a time; None for no limit."""
        processor = self.match(type_)
        return None if processor is None else processor.max_running

    def policy(self, processor: Processor | None) -> RetryPolicy:
        """How attempts of *processor* are judged; without one, as settings say."""
        if processor is None:
            return self._default_policy
        policy = self._policies.get(processor)  # made once: it is asked for twice for each row
        if policy is None:
            policy = self._policies[processor] = processor.policy(self._default_policy)
        return policy

    def policy_of(self, type_: str) -> RetryPolicy | None:
        """How attempts of that type are judged; None when nobody here may judge them."""
        processor = self.match(type_)
        return None if processor is None else self.policy(processor)

    def routable(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* that have a processor here, in their order."""
        return tuple(lane for lane in lanes if self.match(lane.type) is not None)

    def strays(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* that wait until somebody registers one."""
        return tuple(lane for lane in lanes if self.match(lane.type) is None)

    def here(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* whose processor runs in this process."""
        return tuple(lane for lane in lanes if self.match(lane.type) is not None and self.deployment(lane.type) is None)

    def elsewhere(self, lanes: Iterable[Lane]) -> tuple[Lane, ...]:
        """Those of *lanes* whose actions become runs of a deployment."""
        return tuple(lane for lane in lanes if self.deployment(lane.type) is not None)

    @property
    def has_elsewhere(self) -> bool:
        """Whether there is a deployment processor at all."""
        return bool(self._registry.deployed)

    def deployment(self, type_: str) -> Deployment | None:
        """The deployment that does actions of that type; None when there is none."""
        processor = self.match(type_)
        return None if processor is None else processor.deployment

    def lease_elsewhere(self, type_: str) -> timedelta:
        """How long a lease of the deployment lane is; the default where nobody here knows that type any more."""
        deployment = self.deployment(type_)
        return LEASE if deployment is None else deployment.lease

    def queued_at_most(self, type_: str) -> timedelta:
        """How long a run of that type may wait; the default as above."""
        deployment = self.deployment(type_)
        return QUEUED_AT_MOST if deployment is None else deployment.queued_at_most
