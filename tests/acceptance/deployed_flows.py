"""The flow of the deployment lane's test, as it is deployed; it writes its executions into a ledger."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow

from prefect_claim_dispatch import claimed_action


def note(event: str) -> None:
    with Path(os.environ["DEPLOYED_LEDGER"]).open("a") as ledger:
        ledger.write(f"{event} {os.getpid()}\n")


@flow
async def encode(how: str, action: dict[str, Any]) -> None:
    """What *how* says: end well, raise, or run until it is ended; an async flow, where other tests have sync ones."""
    with claimed_action(action, lease=timedelta(seconds=60)) as claimed:
        note(f"begun #{claimed.id}.{claimed.claim_count}")
        match how:
            case "fails":
                msg = "the codec is missing"
                raise RuntimeError(msg)
            case "hangs":
                await asyncio.sleep(600)
            case _:
                assert claimed.payload["how"] == how
        note(f"done #{claimed.id}.{claimed.claim_count}")
