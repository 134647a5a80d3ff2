"""Judging facts: pure functions, each of which returns findings. Here are the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from prefect_claim_dispatch.diagnosing.facts import BlockingFacts, ClaimFacts, Pin, RightsFacts, ServerFacts, TupleFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, fine, warning
from prefect_claim_dispatch.dialects import SQLITE
from prefect_claim_dispatch.patterns import matching
from prefect_claim_dispatch.rows import Counts, Pause, TypeCounts

PATIENCE: Final = timedelta(minutes=5)
SKEW: Final = timedelta(seconds=5)
LONG_CLAIM: Final = timedelta(hours=1)
MANY_TRANSACTIONS: Final = 1_000_000
MANY_DEAD: Final = 50_000
NAMED: Final = 5
WRITTEN_ONCE: Final = ("id", "type", "payload", "priority", "idempotency_key", "ordering_key", "created_at")
PUBLISHED: Final = ("type", "payload", "end_at", "priority", "idempotency_key", "ordering_key")
KEPT: Final = ("id", "type", "idempotency_key")

RUN_A_FLOW: Final = "let a claim flow run: claim-dispatch run, or its deployment (see the findings on Prefect)"


def judge_server(facts: ServerFacts) -> list[Finding]:
    """Database, clock, pooler, file."""
    what = "SQLite" if facts.dialect == SQLITE else "PostgreSQL"
    reached = fine("database", f"{what} {facts.version}{f', {facts.file}' if facts.file else ''}")
    return [reached, *_writable(facts), *_journal(facts), *_pooler(facts), *_clock(facts)]


def _writable(facts: ServerFacts) -> list[Finding]:
    if facts.is_read_only:
        return [failure("database", "it is read-only: a standby, perhaps", "point the URL at the primary")]
    parts = {"file": facts.is_file_writable, "folder": facts.is_folder_writable}
    closed = " and ".join(part for part, is_writable in parts.items() if not is_writable)
    if closed:
        what = f"this user can't write the {closed} of {facts.file}; SQLite writes its log beside the file"
        return [failure("database", what, "give this user the right to write both, the file and its folder")]
    return []


def _journal(facts: ServerFacts) -> list[Finding]:
    if facts.journal_mode in (None, "wal"):
        return []
    what = f"journal mode {facts.journal_mode} instead of wal: readers and writers wait for each other"
    return [warning("database", what, "put the file on a local disk: network file systems can't share the log")]


def _pooler(facts: ServerFacts) -> list[Finding]:
    return [fine("pooler", "a pooler stands between; nothing is prepared on the server")] if facts.is_pooled else []


def _clock(facts: ServerFacts) -> list[Finding]:
    if facts.skew is None:
        return []
    if abs(facts.skew) <= SKEW:
        return [fine("clock", "the database's clock and this machine's agree")]
    side = "ahead of" if facts.skew > timedelta(0) else "behind"
    what = f"the database's clock is {rough(abs(facts.skew))} {side} this machine's; only the database's counts"
    return [warning("clock", what, "set the clocks by NTP; until then logs of this machine can't be compared")]


def judge_rights(facts: RightsFacts, columns: Iterable[str]) -> list[Finding]:
    """Whether the role may do a claim flow's work on *columns*, as deployments/grants.sql gives it.

    No right on a sequence is wanted: the id is an identity column.
    """
    wanted = tuple(columns)
    missing = [name for name in wanted if name not in facts.rights]
    if missing:
        what = f"the table has no column {', '.join(missing)}"
        return [failure("schema", what, "run: claim-dispatch db upgrade, or the application's own migrations")]
    written = tuple(name for name in wanted if name not in WRITTEN_ONCE)
    lacks = [
        f"{right.upper()} on {_some(names, len(of))}"
        for right, of in (("select", wanted), ("update", written))
        if (names := facts.lacks(right, of))
    ]
    if lacks:
        what = f"this role can't dispatch, it lacks {' and '.join(lacks)}"
        return [failure("grants", what, "grant what deployments/grants.sql gives to claim_dispatch_dispatcher")]
    publishes = "" if facts.lacks("insert", PUBLISHED) else " and publish"
    return [fine("grants", f"this role may dispatch{publishes}")]


def publishes_only(facts: RightsFacts) -> bool:
    """Whether the role publishes and does nothing else, as deployments/grants.sql has it: no payloads, no claims."""
    publishes = not facts.lacks("insert", PUBLISHED) and not facts.lacks("select", KEPT)
    return publishes and bool(facts.lacks("select", ("payload",))) and bool(facts.lacks("update", ("claim_count",)))


def judge_publisher() -> list[Finding]:
    """What to say to a role that publishes only: nothing is wrong, and the rest is not for it to see."""
    what = "this role may publish; how actions stand, it may not see"
    return [
        fine("grants", "this role may publish"),
        warning("rows", what, "for the rest of the checks, ask as the claim flow's role"),
    ]


def _some(names: list[str], of: int) -> str:
    return "the table" if len(names) == of else f"column {', '.join(names)}"


def judge_indexes(found: Mapping[str, bool], wanted: Iterable[str]) -> list[Finding]:
    """Whether our indexes are there and used: without them a claim reads the whole backlog."""
    names = sorted(wanted)
    missing = [name for name in names if name not in found]
    invalid = [name for name in names if found.get(name) is False]
    findings: list[Finding] = []
    if missing:
        remedy = "create them as in: claim-dispatch db sql (CONCURRENTLY, where the table is in use)"
        findings.append(failure("indexes", f"missing: {', '.join(missing)}; claims read the whole backlog", remedy))
    if invalid:
        remedy = "run for each: REINDEX INDEX CONCURRENTLY ..."
        findings.append(failure("indexes", f"invalid, so never used: {', '.join(invalid)}", remedy))
    return findings or [fine("indexes", f"all {len(names)} are there")]


def judge_wake_up(*, is_there: bool | None) -> list[Finding]:
    """Whether publishing wakes claim flows that stay. It is fine without: they look every second."""
    if is_there is None:
        return []
    if is_there:
        return [fine("wake-up", "publishing wakes claim flows that stay")]
    return [fine("wake-up", "no trigger: claim flows that stay look every second; claim-dispatch db wake-up adds one")]


def judge_vacuum(pins: Iterable[Pin], tuples: TupleFacts | None, patience: timedelta) -> list[Finding]:
    """What keeps VACUUM from its work: each claim steps over the dead entries that it may not remove."""
    held = [pin for pin in pins if _pins_for_long(pin, patience)]
    findings = [_pinned(pin) for pin in held[:NAMED]]
    if tuples is None:
        return findings
    if tuples.dead > max(MANY_DEAD, tuples.live // 5):
        what = f"{tuples.dead:,} dead row versions beside {tuples.live:,} live ones; claims step over them"
        remedy = "end what pins them, see above" if held else "look whether autovacuum runs; VACUUM (ANALYZE) the table"
        findings.append(warning("vacuum", what, remedy))
    return findings or [fine("vacuum", f"nothing pins dead rows for long; {tuples.dead:,} dead, {tuples.live:,} live")]


def _pins_for_long(pin: Pin, patience: timedelta) -> bool:
    return pin.transactions > MANY_TRANSACTIONS if pin.age is None else pin.age >= patience


def _pinned(pin: Pin) -> Finding:
    age = f"for {pin.transactions:,} transactions" if pin.age is None else f"for {rough(pin.age)}"
    what = f"{pin.kind} {pin.who} keeps dead rows from being removed {age}; claims become slower meanwhile"
    match pin.kind:
        case "session":
            remedy = f"end its transaction, or the session: SELECT pg_terminate_backend({pin.who.partition(' ')[0]})"
        case "prepared transaction":
            remedy = "COMMIT PREPARED or ROLLBACK PREPARED it"
        case _:
            remedy = "let its standby catch up, or SELECT pg_drop_replication_slot(...) if nobody needs it any more"
    return warning("vacuum", what, remedy)


def judge_pauses(pauses: Sequence[Pause] | None) -> list[Finding]:
    """Whether types can be paused; *pauses* are None where there is no table of them."""
    if pauses is not None:
        return []
    what = "there is no table of pauses beside the action table, so no type can be paused"
    return [warning("pauses", what, "add schema.pauses_table to the migrations that made the action table")]


def judge_blocking(
    heads: Sequence[BlockingFacts],
    is_routable: Callable[[str], bool] | None,
    patience: timedelta,
    paused: Sequence[str] = (),
) -> list[Finding]:
    """Which actions hold others of their ordering key back, and not because they run."""
    stuck = [(head, _why_stuck(head, is_routable, paused)) for head in heads if head.waited >= patience]
    named = [f"{_head(head)} {why}" for head, why in stuck if why]
    if not named:
        return []
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    what = f"due actions wait for the one before them of their ordering key: {'; '.join(named[:NAMED])}{more}"
    remedy = "claim-dispatch show ID; then reschedule it, cancel it, or give its type a processor"
    return [warning("rows", what, remedy)]


def _why_stuck(head: BlockingFacts, is_routable: Callable[[str], bool] | None, paused: Sequence[str]) -> str:
    if head.until_due > timedelta(0):
        return f"waits {rough(head.until_due)} for its next attempt"
    if matching(paused, head.type):
        return "is paused"
    return "has no processor here" if is_routable is not None and not is_routable(head.type) else ""


def _head(head: BlockingFacts) -> str:
    return f"#{head.id} {head.type}, before {head.waiting:,} of {head.ordering_key!r} for {rough(head.waited)},"


def judge_rows(
    counts: Counts,
    claims: ClaimFacts,
    is_routable: Callable[[str], bool] | None,
    patience: timedelta,
    pauses: Sequence[Pause] = (),
) -> list[Finding]:
    """What is stuck. *is_routable*: whether a type has a processor here; None where that is not known."""
    waiting = _waiting(counts, is_routable, patience, [pause.type for pause in pauses])
    findings = [*_leases(claims, patience), *_held(counts, pauses), *waiting, *_dead(counts)]
    if findings:
        return findings
    pending, claimed = (counts.statuses[status] for status in ("pending", "claimed"))
    return [fine("rows", f"{pending:,} pending, {claimed:,} claimed; nothing is stuck")]


def _leases(claims: ClaimFacts, patience: timedelta) -> list[Finding]:
    if claims.expired and claims.overdue >= patience:
        what = (
            f"leases are over, and nobody takes them back: {claims.expired:,}, the oldest for {rough(claims.overdue)}"
        )
        return [failure("rows", what, RUN_A_FLOW)]
    if claims.oldest >= LONG_CLAIM and not claims.expired:
        what = f"an action has been claimed for {rough(claims.oldest)}, and its lease is renewed"
        return [warning("rows", what, "look: claim-dispatch list --status claimed; give its processor a timeout")]
    return []


def _held(counts: Counts, pauses: Sequence[Pause]) -> list[Finding]:
    held = [(pause, number) for pause in pauses if (number := pause.waiting(counts))]
    if not held:
        return []
    named = ", ".join(f"{pause.type} ({number:,}{_why(pause)})" for pause, number in held[:NAMED])
    what = f"due, and paused by an operator: {named}{_more(len(held))}"
    return [warning("rows", what, "when what was wrong is mended: claim-dispatch resume TYPE")]


def _why(pause: Pause) -> str:
    return f": {pause.reason}" if pause.reason else ""


def _waiting(
    counts: Counts, is_routable: Callable[[str], bool] | None, patience: timedelta, paused: Sequence[str]
) -> list[Finding]:
    due = [kind for kind in counts.types if kind.due and not matching(paused, kind.type)]
    strays = [kind for kind in due if is_routable is not None and not is_routable(kind.type)]
    late = [kind for kind in due if kind not in strays and (kind.oldest_due_age or timedelta(0)) >= patience]
    findings: list[Finding] = []
    if strays:
        remedy = "name the module of their processors (--processors, CLAIM_DISPATCH_PROCESSORS), or cancel them"
        findings.append(warning("rows", f"due, and no processor here takes them: {_types(strays)}", remedy))
    if late:
        findings.append(warning("rows", f"due for long: {_types(late)}", RUN_A_FLOW))
    return findings


def _dead(counts: Counts) -> list[Finding]:
    dead = {kind.type: kind.statuses["dead"] for kind in counts.types if kind.statuses.get("dead")}
    if not dead:
        return []
    named = ", ".join(f"{type_} ({number:,})" for type_, number in sorted(dead.items())[:NAMED])
    what = f"{sum(dead.values()):,} dead: {named}{_more(len(dead))}"
    return [warning("rows", what, "look: claim-dispatch list --status dead; then claim-dispatch retry, or prune")]


def _types(kinds: list[TypeCounts]) -> str:
    named = ", ".join(f"{kind.type} ({kind.due:,}, for {rough(kind.oldest_due_age)})" for kind in kinds[:NAMED])
    return named + _more(len(kinds))


def _more(number: int) -> str:
    return f" and {number - NAMED} types more" if number > NAMED else ""


def rough(age: timedelta | None) -> str:
    """An age in one unit: ``12 s``, ``7 min``, ``3 h``, ``9 d``."""
    seconds = 0 if age is None else int(age.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
