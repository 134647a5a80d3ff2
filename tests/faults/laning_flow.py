"""A claim flow for the processors of `laning`: ``python -m tests.faults.laning_flow threads|processes``."""

from __future__ import annotations

import sys
from datetime import timedelta

from prefect.task_runners import ProcessPoolTaskRunner

from prefect_claim_dispatch import claim_dispatch

# Failpoints are armed by their import, in a pool's processes too.
MODULES = ["tests.faults.laning", "tests.faults.failpoints"]

if __name__ == "__main__":
    flow = claim_dispatch
    if sys.argv[1] == "processes":
        flow = claim_dispatch.with_options(task_runner=ProcessPoolTaskRunner(max_workers=2))
    flow(processors=MODULES, lease=timedelta(seconds=3), stay=timedelta(seconds=1), max_concurrency=4)
