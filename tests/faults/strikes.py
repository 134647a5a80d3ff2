"""A process that does one act and is struck at one statement of it; and what it tells by its exit code."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import claiming, engines, operations
from prefect_claim_dispatch.errors import DatabaseError
from tests.faults import failpoints
from tests.faults.acts import ACTS, BYSTANDER, Scene
from tests.faults.failpoints import FailpointError
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.tables import TABLE

DONE, CAUGHT, DEAF = 0, 3, 4
"""Exit codes: nothing struck; the error was raised, and the engine is usable after it; and it is not."""

INTO_THE_FRAME: Final = 100  # bytes: past the header of the log's next frame, in the middle of its page
COLUMNS: Final = ("id", "type", "status", "idempotency_key", "claim_count", "fail_count", "run_id", "priority")


def strike(act: str, url: str, folder: str, failpoint: str | None) -> int:
    """Do *act* in *folder*, which gets its ledger, its publish log and ``before.json``, and be struck.

    *failpoint* as `tests.faults.failpoints` reads it, or ``statement:in-commit``: die in the middle of the write that
    a COMMIT of SQLite is.
    """
    scene = scene_of(engines.create(url), Path(folder))
    made = ACTS[act].prepare(scene)
    scene.publish(None, type_=BYSTANDER)
    (Path(folder) / "before.json").write_text(json.dumps(snapshot(scene.engine)))
    if ACTS[act].commits_each:
        scene.engine.dispose()  # the act has connections of its own; an idle one would be cut with them
    with _armed(scene.engine, failpoint):
        try:
            ACTS[act].do(scene, made)
        except (FailpointError, DatabaseError, DBAPIError):
            return CAUGHT if _claims_again(scene.engine) else DEAF
    return DONE


def scene_of(engine: Engine, folder: Path) -> Scene:
    """The scene whose records are in *folder*."""
    return Scene(engine, Ledger(folder / "ledger"), PublishLog(folder / "published"))


def snapshot(engine: Engine) -> list[list[Any]]:
    """What an act may change, as JSON holds it; instants left out, but for whether they are set and in the future.

    A pause has no id.
    """
    with engine.connect() as connection:
        rows = connection.execute(select(TABLE).order_by(TABLE.c.id)).all()
    pauses = [[None, pause.type, pause.reason] for pause in operations.paused(engine)]
    return pauses + [
        [
            *(getattr(row, name) for name in COLUMNS),
            row.payload,
            [error["kind"] for error in row.errors],
            row.lease_expires_at and (row.lease_expires_at - row.claimed_at).total_seconds() // 60,
            round((row.end_at - row.created_at).total_seconds() / 600),
            row.settled_at is not None,
        ]
        for row in rows
    ]


def _claims_again(engine: Engine) -> bool:
    """Whether the same engine still works: one fault must not cost more than what it struck."""
    try:
        claiming.survey(engine, TABLE)
    except DatabaseError:
        return False
    return True


@contextmanager
def _armed(engine: Engine, failpoint: str | None) -> Any:
    statement, _, moment = (failpoint or "").partition(":")
    if moment == "in-commit":
        failpoints.arm(f"{statement}:after:call")
        failpoints.called = _die_in_the_next_write(engine)
    elif failpoint:
        failpoints.arm(failpoint)
    try:
        yield
    finally:
        failpoints.disarm()


def _die_in_the_next_write(engine: Engine) -> Callable[[], None]:
    """Let the log not grow by a whole page: the kernel cuts the write short, and SIGXFSZ ends the process at the next.

    Python ignores that signal unless told otherwise.
    """
    log = Path(f"{engine.url.database}-wal")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        end = log.stat().st_size if log.exists() else 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (end + INTO_THE_FRAME, end + INTO_THE_FRAME))

    return limit
