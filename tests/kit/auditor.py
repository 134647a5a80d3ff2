"""The auditor: hold a ledger and a publish log against the action table, and say which promise was broken where.

It knows nothing of how the package works: only the columns, and what is promised of them (S1 to S8, L1, L2 and C1).
An attempt that ended without being counted, and a repeat that nothing explains, are told apart: the first breaks S5,
the second S7.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, select

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.dialects import now
from prefect_claim_dispatch.policies import KEPT_ERRORS
from prefect_claim_dispatch.rows import ActionRow
from tests.kit.cases import Case, Violation, number
from tests.kit.ledger import Entry, Ledger, Lines, PublishLog

TERMINAL = ("processed", "dead", "cancelled")
COUNTED = ("failed", "crashed")
COMES_AGAIN = ("failed", "snoozed", "released")  # ends of an execution after which another one is no surprise
CLOCKS_AGREE_WITHIN = timedelta(milliseconds=50)


Check = Callable[[Case], Iterator[Violation]]


def audit(
    engine: Engine, ledger: Ledger | Lines, published: PublishLog | Lines, *, table: str | None = None, **facts: Any
) -> list[Violation]:
    """Every promise that is broken, in order; empty when all hold. *facts* are the fields of `Case`.

    Ask when nobody writes: a line that is on its way looks like one that was never written.
    """
    written = ledger if isinstance(ledger, Lines) else ledger.read()
    asked = published if isinstance(published, Lines) else published.read()
    with engine.connect() as connection:
        moment = connection.execute(select(now())).scalar_one()
        rows = operations.find(connection, limit=None, table=table)
    return examine(Case(rows=rows, now=moment, ledger=written, published=asked, **facts))


def examine(case: Case) -> list[Violation]:
    """As `audit`, of what was read already."""
    return sorted({violation for check in CHECKS for violation in check(case)})


def report(violations: Iterable[Violation]) -> str:
    """One line for each, for the message of an assertion."""
    return "\n".join(map(str, violations)) or "all promises hold"


def one_lease(case: Case) -> Iterator[Violation]:
    """S1: a claim belongs to one, the count rises, and of two executions at once one has lost its lease."""
    for id_ in case.history:
        for what in ("claim", "begin"):
            entries = case.lines(id_, what)
            for fence, times in Counter(entry.fence for entry in entries).items():
                if times > 1:
                    yield Violation("S1", (id_,), f"#{id_}: claim {fence[1]} was the subject of {times} {what} lines")
        counts = [entry.claim_count for entry in case.lines(id_, "claim") + case.lines(id_, "begin")]
        row = case.by_id.get(id_)
        if row and counts and max(counts) > row.claim_count:
            yield Violation("S1", (id_,), f"#{id_}: claim {max(counts)} was seen, the table says {row.claim_count}")
        for one, other in _overlaps(case.lines(id_, "begin"), case.lines(id_, "end")):
            if not case.is_explained(id_, min(one, other)):
                what = f"#{id_}: claims {one} and {other} ran at once, and no expiry of the first is on record"
                yield Violation("S1", (id_,), what)


def fenced(case: Case) -> Iterator[Violation]:
    """S2: nothing that was sent under an old claim was taken after a newer claim was known to be made."""
    for id_ in case.history:
        claims = case.lines(id_, "claim") + case.lines(id_, "begin")
        for entry in case.lines(id_, "accepted"):
            sent_at = entry.at if entry.sent_at is None else entry.sent_at
            newer = [claim.claim_count for claim in claims if claim.at < sent_at]
            if max(newer, default=0) > entry.claim_count:
                what = f"#{id_}: the table took a write of claim {entry.claim_count} after claim {max(newer)} was made"
                yield Violation("S2", (id_,), what)


def final(case: Case) -> Iterator[Violation]:
    """S3: what was terminal, by its settlement or as it was seen before, is as it was."""
    for before in case.earlier:
        after = case.by_id.get(before.id)
        if before.status in TERMINAL and after and before != after and before.id not in case.retried:
            what = f"#{before.id}: was {before.status}, and changed: {_change(before, after)}"
            yield Violation("S3", (before.id,), what)
    for id_ in case.history:
        row = case.by_id.get(id_)
        for entry in case.lines(id_, "accepted"):
            is_other = row and (row.status, row.claim_count) != (entry.outcome, entry.claim_count)
            if entry.outcome in TERMINAL and row and is_other and id_ not in case.retried:
                what = f"#{id_}: settled {entry.outcome} by claim {entry.claim_count}, now {row.status}"
                yield Violation("S3", (id_,), what)


def nothing_lost(case: Case) -> Iterator[Violation]:
    """S4: every acknowledged row is there or was pruned; what else is there, somebody asked for without an answer."""
    acknowledged = {entry.id: entry for entry in case.published.entries if entry.what == "published" and entry.id}
    for id_, entry in acknowledged.items():
        if id_ not in case.by_id and id_ not in case.pruned:
            yield Violation("S4", (id_,), f"#{id_} ({entry.type}): acknowledged, and neither in the table nor pruned")
        if id_ in case.by_id and id_ in case.pruned:
            yield Violation("S4", (id_,), f"#{id_} ({entry.type}): said to be pruned, and still in the table")
    unanswered = Counter((entry.type, entry.key) for entry in _unanswered(case.published))
    for row in case.rows:
        if row.id in acknowledged:
            continue
        wanted = (row.type, row.idempotency_key)
        if not unanswered[wanted]:
            yield Violation("S4", (row.id,), f"#{row.id} ({row.type}): nobody's publish accounts for this row")
        unanswered[wanted] -= bool(unanswered[wanted])


def counted(case: Case) -> Iterator[Violation]:
    """S5: no execution without a claim, no more failures than allowed, and each failure and crash counted."""
    for row in case.rows:
        begun = {entry.claim_count for entry in case.lines(row.id, "begin")}
        if len(begun) > row.claim_count:
            yield Violation("S5", (row.id,), f"#{row.id}: {len(begun)} executions, {row.claim_count} claims")
        if row.fail_count > case.max_attempts:
            what = f"#{row.id}: {row.fail_count} attempts counted, {case.max_attempts} allowed"
            yield Violation("S5", (row.id,), what)
        recorded = sum(error.get("kind") in COUNTED for error in row.errors)
        least = min(row.fail_count, KEPT_ERRORS - (len(row.errors) - recorded))
        starts_anew = row.id in case.retried or row.id in case.replaced
        if not starts_anew and not least <= recorded <= row.fail_count:
            what = f"#{row.id}: {row.fail_count} attempts counted, {recorded} failures and crashes recorded"
            yield Violation("S5", (row.id,), what)
        for claim_count in begun & _uncounted(case, row):
            what = f"#{row.id}: the attempt of claim {claim_count} failed or crashed, and was not counted"
            yield Violation("S5", (row.id,), what)


def one_per_key(case: Case) -> Iterator[Violation]:
    """S6: one row for each type and idempotency key."""
    holders: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in case.rows:
        if row.idempotency_key is not None:
            holders[row.type, row.idempotency_key].add(row.id)
    for entry in case.published.entries:
        if entry.what == "published" and entry.outcome == "created" and entry.key and entry.id not in case.pruned:
            holders[entry.type, entry.key].add(entry.id)
    for (type_, key), ids in holders.items():
        if len(ids) > 1:
            what = f"key {key!r} of {type_} has {len(ids)} rows: {', '.join(f'#{id_}' for id_ in sorted(ids))}"
            yield Violation("S6", tuple(sorted(ids)), what)


def explained(case: Case) -> Iterator[Violation]:
    """S7: processed means finished under the winning claim; each repeat follows a recorded end of the one before."""
    for row in case.rows:
        ends, begun = case.ends(row.id), sorted(entry.claim_count for entry in case.lines(row.id, "begin"))
        if row.status == "processed" and ends.get(row.claim_count) != "processed":
            what = f"#{row.id}: processed under claim {row.claim_count}, in which no processor finished"
            yield Violation("S7", (row.id,), what)
        for before, after in itertools.pairwise(begun):
            if before != after and ends.get(before) not in COMES_AGAIN and not case.is_explained(row.id, before):
                what = f"#{row.id}: ran again under claim {after}, and nothing explains what ended claim {before}"
                yield Violation("S7", (row.id,), what)
        keys = {entry.key for entry in case.history.get(row.id, ()) if entry.key}
        if len(keys) > 1:
            yield Violation("S7", (row.id,), f"#{row.id}: its attempts had different keys: {', '.join(sorted(keys))}")


def not_early(case: Case) -> Iterator[Violation]:
    """S8: by the table's own instants, and by the processes' clocks where those are right."""
    for row in case.rows:
        if row.claimed_at and row.end_at and row.claimed_at < row.end_at:
            yield Violation("S8", (row.id,), f"#{row.id}: claimed at {row.claimed_at}, eligible at {row.end_at}")
    for id_ in case.history if case.wall_clocks else ():
        for entry in case.lines(id_, "begin"):
            began_at = datetime.fromtimestamp(entry.wall, UTC)
            if entry.due and began_at < datetime.fromisoformat(entry.due) - CLOCKS_AGREE_WITHIN:
                what = f"#{id_}: claim {entry.claim_count} began at {began_at}, eligible at {entry.due}"
                yield Violation("S8", (id_,), what)


def all_done(case: Case) -> Iterator[Violation]:
    """L1: after the last fault everything due is terminal, and everybody claims again."""
    for row in case.rows if case.ended else ():
        is_due = row.end_at is not None and row.end_at <= case.now and row.type not in case.unroutable
        if row.status == "claimed" or (row.status == "pending" and is_due):
            yield Violation("L1", (row.id,), f"#{row.id} ({row.type}): still {row.status}, eligible at {row.end_at}")
    claimed = {entry.pid for entry in case.ledger.entries if entry.what == "claim" and entry.at >= case.healed_at}
    for pid in sorted(set(case.workers) - claimed):
        yield Violation("L1", (), f"process {pid} has claimed nothing since the last fault healed")


def unharmed(case: Case) -> Iterator[Violation]:
    """L2: a healthy row is not dead, was not charged for a claim that never began, and did not wait for bad ones."""
    for row in case.rows if case.bad is not None else ():
        if row.id in (case.bad or ()):
            continue
        if row.status == "dead":
            yield Violation("L2", (row.id,), f"#{row.id} ({row.type}): dead, with nothing wrong with it")
        begun = case.lines(row.id, "begin")
        charged = {number(error.get("claim_count")) for error in row.errors if error.get("kind") == "crashed"}
        for claim_count in sorted(charged - {entry.claim_count for entry in begun}):
            what = f"#{row.id} ({row.type}): claim {claim_count} cost an attempt, and never began"
            yield Violation("L2", (row.id,), what)
        if case.patience is not None and begun and begun[0].due:
            waited = datetime.fromtimestamp(begun[0].wall, UTC) - datetime.fromisoformat(begun[0].due)
            if waited > case.patience:
                yield Violation("L2", (row.id,), f"#{row.id} ({row.type}): waited {waited}, {case.patience} allowed")


def confidential(case: Case) -> Iterator[Violation]:
    """C1: no payload text in what Prefect stores, logs or shows. The sentence does not show it either."""
    for position, secret in enumerate(sorted(case.secrets)):
        for name, text in case.exposed.items():
            if secret in text:
                yield Violation("C1", (), f"payload text no. {position} of {len(case.secrets)} is in {name}")


CHECKS: tuple[Check, ...] = (
    one_lease,
    fenced,
    final,
    nothing_lost,
    counted,
    one_per_key,
    explained,
    not_early,
    all_done,
    unharmed,
    confidential,
)


def _overlaps(begins: Sequence[Entry], ends: Sequence[Entry]) -> Iterator[tuple[int, int]]:
    """Pairs of claims of one action that were executed at the same time; one without an end has died at some time."""
    ended_at = {entry.claim_count: entry.at for entry in ends}
    spans = [(entry.at, ended_at.get(entry.claim_count, entry.at), entry.claim_count) for entry in begins]
    for position, (_, end, claim_count) in enumerate(spans):
        for other_start, _, other in spans[position + 1 :]:
            if other_start < end and other != claim_count:
                yield claim_count, other


def _uncounted(case: Case, row: ActionRow) -> set[int]:
    """Claims whose execution failed, or never ended while the row went on, and that `errors` does not know."""
    ends = case.ends(row.id)
    begun = sorted({entry.claim_count for entry in case.lines(row.id, "begin")})
    found: set[int] = set()
    for claim_count in begun:
        is_last = claim_count == begun[-1]
        is_held = row.status == "claimed" and row.claim_count == claim_count
        has_failed = ends.get(claim_count) == "failed"
        has_vanished = claim_count not in ends and is_last and row.status != "processed"
        if (has_failed or has_vanished) and not is_held and not case.is_explained(row.id, claim_count):
            found.add(claim_count)
    return found


def _unanswered(published: Lines) -> list[Entry]:
    answered = {entry.token for entry in published.entries if entry.what in ("published", "refused")}
    return [entry for entry in published.entries if entry.what == "asked" and entry.token not in answered]


def _change(before: ActionRow, after: ActionRow) -> str:
    old, new = before.as_dict(), after.as_dict()
    return ", ".join(f"{name} {old[name]!r} to {new[name]!r}" for name in old if old[name] != new[name])
