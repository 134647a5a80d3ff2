"""Too little of something: connections for all processes, or disk for a whole server, its write-ahead log included."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from prefect_claim_dispatch import Draft, databases, engines, migrations, publish_many
from prefect_claim_dispatch.errors import DatabaseUnavailableError
from prefect_claim_dispatch.settings import PREFIX
from tests.kit import keeping, postgres
from tests.kit.auditor import audit, report
from tests.kit.ledger import VARIABLE, Ledger, PublishLog
from tests.kit.looping import Scene
from tests.kit.processes import Child, Processes
from tests.kit.tables import by_status
from tests.kit.waiting import wait_until
from tests.soak import notes
from tests.soak.scenario import Part

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("outages")]

CONNECTIONS, PROCESSES, ROWS = 10, 20, 200
DISK_MEGABYTES = 64


@pytest.fixture
def scarce_server() -> Iterator[postgres.Server]:
    """A PostgreSQL of its own with ten connections."""
    folder = keeping.run_folder() / f"scarce-{os.urandom(2).hex()}"
    yield postgres.start(next(iter(postgres.available())), folder, durable=True, max_connections=CONNECTIONS)
    postgres.discard(folder)


def start_claimants(children: Processes, part: Part, url: str) -> list[Child]:
    """Claim loops in processes of their own, which begin anew as the next scheduled flow would."""
    environment = {
        **part.environment,
        VARIABLE: str(part.ledger),
        f"{PREFIX}DATABASE_URL": url,
        f"{PREFIX}LEASE_SECONDS": str(part.lease_seconds),
    }
    # Last in line for the processor: so many at once would take it from the tests that run beside this one.
    command = ("nice", "-n", "19", sys.executable, "-m", "tests.soak.claimants", "loop")
    return [children.start(command, env=environment) for _ in range(PROCESSES)]


def settled(ledger: Ledger) -> int:
    """How many verdicts the table took, by the claimants' own account: no connection is left for us to look."""
    return sum(entry.what == "accepted" and entry.outcome == "processed" for entry in ledger.read().entries)


@pytest.mark.exhaustive
def test_twenty_processes_share_ten_connections(
    scarce_server: postgres.Server, children: Processes, tmp_path: Path
) -> None:
    """Who has claimed gets a connection to settle by; the others wait their turn, and nothing is done twice."""
    url, part = scarce_server.url("postgres"), Part(folder=tmp_path, seed="1", lease_seconds=30.0)
    migrations.upgrade(url)
    engine, log = databases.engine_for(url), PublishLog(part.published)
    draft = Draft().type("soak.quick").payload({"kind": "quick", "seconds": 0.05, "fails": 0})
    tokens = [log.asked("soak.quick") for _ in range(ROWS)]
    for token, receipt in zip(tokens, publish_many(engine, [draft] * ROWS), strict=True):
        log.published(token, receipt, "soak.quick")
    engine.dispose()

    ledger, claimants = Ledger(part.ledger), start_claimants(children, part, url)
    wait_until(lambda: settled(ledger) == ROWS, description="all is done", timeout=200)
    wait_until(
        lambda: any("too many clients" in child.stderr.read_text(errors="replace") for child in claimants),
        description="connections were too few",
        timeout=60,
    )
    assert all(child.is_running for child in claimants), "a process gave up"
    for child in claimants:
        child.kill()
        child.wait(20)

    broken = audit(engine, ledger, log)
    assert not broken, report(broken)
    assert set(Counter(entry.id for entry in ledger.read().entries if entry.what == "begin").values()) == {1}
    assert not [note for note in notes.read(part.notes) if note["what"] == "refused"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 megabytes."""
    disk = keeping.run_folder() / f"small-{os.urandom(2).hex()}"
    disk.mkdir()
    size = f"size={DISK_MEGABYTES}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.decode().strip()}")
    yield disk
    postgres.discard(disk / "server")
    subprocess.run(["umount", "-l", disk], check=False)


def test_server_without_any_disk_left_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """Its log can't be written either, and it may stop: what was acknowledged is there when it has room again."""
    server = postgres.start(next(iter(postgres.available())), small_disk / "server", durable=True)
    url = server.url("postgres")
    migrations.upgrade(url)
    scene = Scene(engines.create(url), tmp_path)
    scene.publish(10)
    filler = small_disk / "filler"

    with scene.loop(lease=120) as running:
        scene.wait_until_begun(4)
        fill(filler)
        with pytest.raises(DatabaseUnavailableError):
            for _ in range(2_000):
                scene.publish(payload={"text": os.urandom(20_000).hex()})
        scene.let_work.set()
        filler.unlink()
        if not is_answering(server):
            server.restart("immediate")
        running.ends(120)
    scene.engine.dispose()

    acknowledged = sum(entry.what == "published" for entry in scene.log.read().entries)
    assert acknowledged > 10
    scene.expect_all_processed(sum(by_status(scene.engine).values()))
    assert sum(by_status(scene.engine).values()) - acknowledged in (0, 1)  # one whose answer was lost
    scene.engine.dispose()


def fill(file: Path) -> None:
    """Write until nothing more fits, and give a megabyte back, for something to be acknowledged first."""
    with file.open("wb", buffering=0) as written:
        try:
            while True:
                written.write(bytes(64 * 1024))
        except OSError:
            written.truncate(written.tell() - 1024 * 1024)


def is_answering(server: postgres.Server) -> bool:
    try:
        with server.connect() as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
