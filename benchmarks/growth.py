"""Growth: what a row leaves behind, in bytes of the table, of its indexes, and of write-ahead log at each step.

Rows with a payload as applications have them and an idempotency key, in ten waves: published, claimed and settled
through the library in pages of 1,000, then vacuumed, as autovacuum would; at the end all are pruned. A PostgreSQL with
its default settings. No time is measured, so a busy machine does no harm.

What would be unfair to read into it: a checkpoint is made before each wave and before pruning, and the first change of
a page after one writes the whole page into the log. Real life has one every five minutes or more often. Larger waves
leave larger indexes, since a page of an index is used again only when it has become empty; other payloads have other
sizes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import kit
from claim_settle import POLICY, claim
from publish import payload
from sqlalchemy import Engine, text

from prefect_claim_dispatch import Draft, engines, operations, publish_many, settling
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.outcomes import Processed
from prefect_claim_dispatch.policies import settlement_for
from prefect_claim_dispatch.schema import actions_table

ROWS = 100_000
WAVES = 10
BATCH = 1_000
TABLE = actions_table()
INDEXES = """
    SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes WHERE relname = 'action_logs'
    ORDER BY indexrelname"""


def execute(engine: Engine, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))


def scalar(engine: Engine, statement: str) -> Any:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return connection.execute(text(statement)).scalar()


def logged(engine: Engine, step: Callable[[], int], rows: int) -> int:
    """Bytes of write-ahead log that *step* wrote, which must be of so many rows."""
    before = scalar(engine, "SELECT pg_current_wal_insert_lsn()")
    done = step()
    if done != rows:
        raise SystemExit(f"{done} of {rows} rows")
    return int(scalar(engine, f"SELECT pg_current_wal_insert_lsn() - CAST('{before}' AS pg_lsn)"))


class Wave:
    """Rows that live at the same time, from their publication to their settlement."""

    def __init__(self, engine: Engine, numbers: range) -> None:
        self.engine = engine
        self.numbers = numbers
        self.pages: list[list[RawAction]] = []

    def publish(self) -> int:
        draft = Draft().type("email.welcome")
        drafts = (draft.payload(payload(number)).idempotency(f"welcome:{number}") for number in self.numbers)
        return len(publish_many(self.engine, drafts))

    def claim(self) -> int:
        while raws := claim(self.engine, TABLE, BATCH):
            self.pages.append(raws)
        return sum(map(len, self.pages))

    def settle(self) -> int:
        verdicts = ([settlement_for(Processed(), raw.action(), POLICY) for raw in raws] for raws in self.pages)
        return sum(len(settling.settle(self.engine, TABLE, page)) for page in verdicts)


def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The life of so many rows, once: nothing of it is by chance."""
    each = max(BATCH, int(ROWS * options.scale) // WAVES)
    rows = each * WAVES
    engine = engines.create(dsn)
    TABLE.metadata.create_all(engine)
    log: Counter[str] = Counter()
    for number in range(WAVES):
        wave = Wave(engine, range(number * each, (number + 1) * each))
        execute(engine, "CHECKPOINT")
        for name, step in (("publish", wave.publish), ("claim", wave.claim), ("settle", wave.settle)):
            log[f"log: {name}"] += logged(engine, step, each)
        execute(engine, "VACUUM action_logs")
    with engine.connect() as connection:
        indexes = {f"index: {name}": size for name, size in connection.execute(text(INDEXES)).tuples()}
    heap = scalar(engine, "SELECT pg_relation_size('action_logs')")
    execute(engine, "CHECKPOINT")
    log["log: prune"] = logged(engine, lambda: pruned(engine), rows)
    engine.dispose()
    sizes = {"log: all": sum(log.values()), "table": heap, "indexes": sum(indexes.values())}
    return [
        {"bytes of": name, "for a row": size / rows, "rows": rows} for name, size in (log | sizes | indexes).items()
    ]


def pruned(engine: Engine) -> int:
    """All finished rows deleted, in bounded batches."""
    done = 0
    while batch := operations.prune(engine, timedelta(0), limit=BATCH):
        done += len(batch)
    return done


def main() -> None:
    """Start a PostgreSQL from the wheel, measure, end it."""
    options = kit.parser(__doc__).parse_args()
    with kit.postgresql() as dsn:
        results = measure(dsn, options)
    kit.show("growth: bytes for a row", results, options, labels=["bytes of"])


if __name__ == "__main__":
    main()
