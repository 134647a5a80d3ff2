"""One soak from beginning to end: everybody lives, everything is broken, healed, drained and audited."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, select

from prefect_claim_dispatch import Draft, operations, publish_many
from prefect_claim_dispatch.dialects import now
from tests.kit.cases import Case
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.waiting import wait_until
from tests.soak import notes
from tests.soak.chaos import Chaos
from tests.soak.findings import REPLACE, Findings, findings_of, ids_noted
from tests.soak.scenario import Scenario
from tests.soak.stage import CLAIMING, Stage, prepared

CLAIM_AGAIN_SECONDS, DRAIN_SECONDS = 90, 180
EXTRA_ROWS = 40


def soak(scenario: Scenario, folder: Path, api: Mapping[str, str]) -> Findings:
    """Run *scenario* in *folder*, a short path where nothing is yet; *api*: the environment of a Prefect client."""
    with prepared(scenario, folder, api) as stage:
        engine = stage.engine()
        stage.start_all()
        chaos = Chaos(stage=stage, dice=random.Random(scenario.seed))
        wait_until(
            lambda: all(map(stage.has_claimed, stage.of_kind(*CLAIMING))),
            description="everybody has claimed",
            timeout=CLAIM_AGAIN_SECONDS,
        )
        chaos.run(time.monotonic() + scenario.seconds)
        healed_at = chaos.heal()
        claimers = _have_everybody_claim(stage, engine, healed_at)
        stage.end("publisher", "operator")
        seconds = _drain(stage, engine)
        stage.end(*CLAIMING)
        more = {
            "answers to commits lost": sum(proxy.lost_answers for proxy in stage.proxies.values()),
            "processes that ended by themselves": len(stage.ended_by_themselves),
            "seconds from the last fault until all was done": round(seconds),
        }
        written = notes.read(stage.part.notes)
        case = _case(stage, engine, written, healed_at=healed_at, workers=claimers)
        engine.dispose()
        return findings_of(case, written, chaos.done, more, scenario.bound_seconds)


def _claimers(stage: Stage, since: float) -> set[int]:
    """The pids of those that run and have claimed since the monotonic instant."""
    found: set[int] = set()
    for member in stage.of_kind(*CLAIMING):
        for file in stage.part.ledger.glob(f"{member.child.pid}-*.jsonl"):
            lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
            if any(line["what"] == "claim" and line["at"] >= since for line in lines):
                found.add(member.child.pid)
    return found


def _have_everybody_claim(stage: Stage, engine: Engine, healed_at: float) -> set[int]:
    """Publish until each has claimed, or time is up; the pids of all of them, which L1 asks about."""
    log = PublishLog(stage.part.published)
    give_up_at = time.monotonic() + CLAIM_AGAIN_SECONDS
    while True:
        stage.restart_dead()
        everybody = {member.child.pid for member in stage.of_kind(*CLAIMING)}
        if everybody <= _claimers(stage, healed_at) or time.monotonic() > give_up_at:
            return everybody
        tokens = [log.asked("soak.last") for _ in range(EXTRA_ROWS)]
        draft = Draft().type("soak.last").payload({"kind": "quick", "seconds": 0.2, "fails": 0})
        for token, receipt in zip(tokens, publish_many(engine, [draft] * EXTRA_ROWS), strict=True):
            log.published(token, receipt, "soak.last")
        threading.Event().wait(0.5)


def _drain(stage: Stage, engine: Engine) -> float:
    """Wait until nothing is pending or claimed, or the time is up, which the auditor then tells by the rows."""
    began_at = time.monotonic()

    def is_done() -> bool:
        stage.restart_dead()
        statuses = operations.counts(engine).statuses
        return not (statuses["pending"] or statuses["claimed"]) or time.monotonic() > began_at + DRAIN_SECONDS

    wait_until(is_done, description="all is done", timeout=2 * DRAIN_SECONDS)
    return time.monotonic() - began_at


def _case(
    stage: Stage, engine: Engine, written: list[dict[str, object]], *, healed_at: float, workers: set[int]
) -> Case:
    with engine.connect() as connection:
        moment = connection.execute(select(now())).scalar_one()
        rows = operations.find(connection, limit=None)
    there = {row.id for row in rows}
    return Case(
        rows=rows,
        # What waits for its time is not done either: the auditor may call it due.
        now=moment + timedelta(days=1),
        ledger=Ledger(stage.part.ledger).read(),
        published=PublishLog(stage.part.published).read(),
        # Of a commit without an answer, what is gone is gone.
        pruned=ids_noted(written, "pruned") | (ids_noted(written, "pruning") - there),
        retried=ids_noted(written, "retrying"),
        replaced={row.id for row in rows if (row.idempotency_key or "").startswith(REPLACE)},
        workers=workers,
        healed_at=healed_at,
    )
