"""``python -m prefect_claim_dispatch.cli``: the same as ``claim-dispatch``."""

from __future__ import annotations

from prefect_claim_dispatch.cli import main

main()
