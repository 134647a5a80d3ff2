"""`claim-dispatch demo`.

The whole thing on the embedded default, with a crash in the middle, and the sums done at the end.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from prefect_claim_dispatch import databases, migrations, operations
from prefect_claim_dispatch.demo.audit import Audit, audited
from prefect_claim_dispatch.demo.scenario import EXPECTED, publish_all, script_failures
from prefect_claim_dispatch.demo.sinks import HttpSink, SmtpSink
from prefect_claim_dispatch.demo.stage import LEASE, DemoError, Stage, wait_until
from prefect_claim_dispatch.rows import Counts

STATUSES = ("pending", "claimed", "processed", "dead", "cancelled")
KILL_AFTER = 60
WIDE = 130
FINISH = 90.0


def main(
    *, directory: Path | None = None, keep: bool = False, answer: Callable[[dict[str, Any]], None] | None = None
) -> int:
    """Run the demo; 0 when every claim that it makes holds, 1 otherwise.

    *directory* is where the database, the logs and Prefect's home go (None: a new temporary one, which stays). With
    *keep* the Prefect server is left running until Enter is pressed. *answer* is given what the demo did, ready for
    JSON; everything that is shown goes to standard error then.
    """
    console = Console(stderr=answer is not None)
    where = directory or Path(tempfile.mkdtemp(prefix="claim-dispatch-demo-"))
    started = time.monotonic()
    try:
        with Stage(directory=where) as stage, SmtpSink() as mails, HttpSink() as calls:
            script_failures(calls)
            stage.environment |= {"DEMO_SMTP_PORT": str(mails.port), "DEMO_HTTP_PORT": str(calls.port)}
            engine = _prepare(console, stage)
            killed = _perform(console, stage, engine)
            audit = audited(engine, mails.message_ids, calls.idempotency_keys)
            _show(console, engine, audit, killed, time.monotonic() - started)
            if answer is not None:
                answer(_document(stage, engine, audit, killed, time.monotonic() - started))
            _invite(console, stage, keep=keep)
    except DemoError as error:
        console.print(f"[red]the demo did not get going:[/] {error}")
        return 1
    return 0 if audit.holds else 1


def _prepare(console: Console, stage: Stage) -> Engine:
    console.print(f"[bold]prefect-claim-dispatch[/] demo in {stage.directory}")
    with console.status("migrating an SQLite file, starting Prefect's own server, SMTP and HTTP sinks on loopback"):
        migrations.upgrade(stage.database_url)
        stage.start_server()
    return databases.engine_for(stage.database_url)


def _perform(console: Console, stage: Stage, engine: Engine) -> int:
    """Two claim flows, one killed in the middle; returns how many claims it held when it died."""
    victim = stage.start_flow("flow-1", stay="60s")
    survivor = stage.start_flow("flow-2", stay="20s")
    with console.status("starting two claim flows, each a process of its own, as two workers would"):
        # Both are there before there is anything to do, or the faster one might leave nothing to the other.
        wait_until(lambda: stage.running_flows() > 1, "two claim flows to run", FINISH)
    for line in publish_all(engine):
        console.print(f"  [green]•[/] {line}")
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        wait_until(
            lambda: _shown(live, engine, "two claim flows at work") and _both_work(engine),
            "both claim flows",
            FINISH,
        )
        held = _kill(victim, engine)
        title = f"flow 1 was killed (SIGKILL) while it held claims; flow 2 goes on, leases last {LEASE}"
        deadline = time.monotonic() + FINISH
        while not _is_finished(operations.counts(engine)):
            _shown(live, engine, title)
            if time.monotonic() > deadline:
                msg = f"not everything was done within {FINISH:.0f} s; see the logs in {stage.directory}"
                raise DemoError(msg)
            if survivor.poll() is not None:
                # As the schedule of a deployment would, every minute.
                survivor = stage.start_flow("flow-2", stay="10s")
            time.sleep(0.3)
    survivor.wait(FINISH)
    return held


def _both_work(engine: Engine) -> bool:
    processed = operations.counts(engine).statuses["processed"]
    holders = {row.claimed_by for row in operations.find(engine, status="claimed", limit=None)}
    return processed >= KILL_AFTER and len(holders) > 1


def _kill(victim: subprocess.Popen[bytes], engine: Engine) -> int:
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    return len(operations.find(engine, status="claimed", limit=None))


def _is_finished(counts: Counts) -> bool:
    unroutable = sum(expected.pending for expected in EXPECTED)
    return counts.statuses["claimed"] == 0 and counts.statuses["pending"] <= unroutable


def _shown(live: Live, engine: Engine, title: str) -> bool:
    live.update(_progress(operations.counts(engine), title))
    return True


def _progress(counts: Counts, title: str) -> Group:
    total = sum(counts.statuses.values())
    done = total - counts.statuses["pending"] - counts.statuses["claimed"]
    numbers = "  ".join(f"{status} {counts.statuses[status]}" for status in STATUSES)
    return Group(Text(title, style="bold"), ProgressBar(total=max(total, 1), completed=done, width=60), Text(numbers))


def _document(stage: Stage, engine: Engine, audit: Audit, held: int, seconds: float) -> dict[str, Any]:
    return {
        "holds": audit.holds,
        "seconds": round(seconds, 1),
        "directory": str(stage.directory),
        "database_url": stage.database_url,
        "claims_held_when_killed": held,
        "rescued": audit.rescued,
        "findings": list(audit.findings),
        "complaints": list(audit.complaints),
        "counts": operations.counts(engine).as_dict(),
    }


def _show(console: Console, engine: Engine, audit: Audit, held: int, seconds: float) -> None:
    table = Table(title=f"action_logs after {seconds:.0f} s")
    table.add_column("type", no_wrap=True)
    for status in STATUSES:
        table.add_column(status, justify="right")
    told = {expected.type: expected.what for expected in EXPECTED} if console.width >= WIDE else {}
    if told:
        table.add_column("what they do", style="dim")
    for counts in operations.counts(engine).types:
        cells = [str(counts.statuses.get(status, 0) or "·") for status in STATUSES]
        table.add_row(counts.type, *cells, *([told.get(counts.type, "")] if told else []))
    console.print(table)
    console.print(f"when flow 1 was killed, {held} claims were open; {audit.rescued} actions lost an attempt:")
    for line in audit.rescues[:3]:
        console.print(f"  [yellow]•[/] {line}")
    for line in audit.findings:
        console.print(f"  [green]✓[/] {line}")
    for line in audit.complaints:
        console.print(f"  [red]✗ {line}[/]")


def _invite(console: Console, stage: Stage, *, keep: bool) -> None:
    if keep:
        console.print(f"the Prefect UI shows these runs: http://127.0.0.1:{stage.port}/runs")
        console.input("press Enter to end the server ")
        return
    home = stage.directory / "prefect"
    console.print("the Prefect UI on these very runs, at http://127.0.0.1:4200/runs:")
    console.print(f"  PREFECT_HOME={home} prefect server start", style="bold", soft_wrap=True)
    console.print(f"the table: claim-dispatch list --database-url {stage.database_url}", soft_wrap=True)
