"""Processors of the test of a claim flow with deployments: one that exists, one that is misspelt, one beside them."""

from __future__ import annotations

from prefect_claim_dispatch import deployment_processor, processor

FLOW = "lane-of-claim-flows"

deployment_processor("lane.deployed", deployment=f"{FLOW}/prod")
deployment_processor("lane.misspelt", deployment=f"{FLOW}/prd")


@processor("lane.local")
def work() -> None:
    """Nothing to do."""
