"""The claim flow as a deployment's entry point: `flows/claim.py:claim`.

Which processors it knows is said by the deployment's parameter ``processors``, or by ``CLAIM_DISPATCH_PROCESSORS``
where the flow
runs: names of modules. Those of this checkout (``flows.processors.email_welcome``) are importable because Prefect
puts the directory that the deployment was pulled into on the import path.
"""

from __future__ import annotations

from prefect_claim_dispatch import claim_dispatch as claim

__all__ = ["claim"]
