"""Processes that live an action's life without Prefect, to be raced, starved and given a wrong clock.

``python -m tests.kit.lives COMMAND URL ...``.

Each line on standard output is said when it has happened.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect_claim_dispatch import claiming, engines
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.rescuing import rescue
from prefect_claim_dispatch.settling import settle
from tests.kit.tables import TABLE, claim_due, verdicts
from tests.kit.waiting import wait_until

CATASTROPHE = "a" * 40 + "b"  # a match of (a+)+$ takes hours, in C, and never gives up the interpreter lock


def say(**facts: Any) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


def live(url: str) -> None:
    """One round: survey, rescue, claim, begin, renew, settle."""
    engine = engines.create(url)
    claiming.survey(engine, TABLE)
    rescued = rescue(engine, TABLE, lambda _: RetryPolicy(backoff=timedelta(0)), limit=100)
    say(rescued=[settlement.id for settlement in rescued])
    raws = claim_due(engine, claimed_by="the-one-with-a-wrong-clock")
    say(claimed=[raw.id for raw in raws])
    claiming.begin(engine, TABLE, [(raw.id, raw.claim_count, f"run-{raw.id}") for raw in raws])
    say(begun=[raw.id for raw in raws])
    claiming.renew(engine, TABLE, [(raw.id, raw.claim_count) for raw in raws], lease=timedelta(minutes=10))
    say(executed=[raw.id for raw in raws])
    settle(engine, TABLE, verdicts(Processed(), raws))
    say(settled=[raw.id for raw in raws])


def race(url: str, start: str, ledger: str, limit: str, racers: str) -> None:
    """Claim and settle until nothing is due, beginning when the file *start* appears.

    Each execution is a line of the file *ledger*. Nobody claims a second time before each of the *racers* has claimed
    once: one that is first to the lock may else have it all.
    """
    engine = engines.create(url)
    claiming.survey(engine, TABLE)
    say(ready=True)
    while not Path(start).exists():
        time.sleep(0.005)
    with Path(ledger).open("w", buffering=1) as executions:
        while claiming.survey(engine, TABLE).due():
            raws = claim_due(engine, limit=int(limit))
            executions.writelines(f"{raw.id} {raw.claim_count}\n" for raw in raws)
            wait_until(
                lambda: sum(1 for other in Path(ledger).parent.glob("ledger-*") if other.stat().st_size) == int(racers),
                description="every racer has claimed",
                timeout=60,
            )
            settled = settle(engine, TABLE, verdicts(Processed(), raws))
            assert settled == {raw.id for raw in raws}, "a lease was lost"
    say(done=True)


def keep(url: str, lease: str, work: str, until: str) -> None:
    """Claim all that is due under a keeper with *lease* seconds, *work* until the file *until* appears, then settle."""
    engine, tally = engines.create(url), Tally()
    duration = timedelta(seconds=float(lease))
    with Keeper(engine, TABLE, lease=duration, tally=tally) as keeper:
        raws = claim_due(engine, lease=duration, claimed_by="the-keeper")
        keeper.hold(raws)
        say(claimed=[raw.id for raw in raws])
        end = threading.Event()
        threads = [threading.Thread(target=WORK[work], args=(end,), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not Path(until).exists():
            time.sleep(0.005)
        end.set()
        for thread in threads:
            thread.join()
        for raw in raws:
            keeper.settle(settlement_for(Processed(), raw, RetryPolicy()))
        keeper.flush(30)
    say(report=tally.report().as_dict())


def _be_idle(end: threading.Event) -> None:
    end.wait()


def _be_busy(end: threading.Event) -> None:
    number = 0
    while not end.is_set():
        for _ in range(10_000):
            number = (number * 31 + 7) % 1_000_003


def _be_stuck(_end: threading.Event) -> None:
    re.match(r"(a+)+$", CATASTROPHE)


WORK = {"idle": _be_idle, "busy": _be_busy, "stuck": _be_stuck}


def main(command: str, *arguments: str) -> None:
    """Do what the command line says."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    {"live": live, "race": race, "keep": keep}[command](*arguments)


def said(output: str) -> dict[str, Any]:
    """What a process has said so far."""
    return _merged(json.loads(line) for line in output.splitlines() if line.endswith("}"))


def _merged(facts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for fact in facts for key, value in fact.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
