"""Generated lives of a few actions against `tests.kit.model`: after every step the table holds what the model says.

Several claimants hold claims, some of them long lost; operators interfere; time jumps. The clock is `testing.at`: every
statement of the package then takes the same instant for the database's now, so the model knows each instant to the
millisecond, which rows moved by SQL could not give. What is promised (S1 to S8) is asserted beside the comparison, from
what was seen and not from the model; L1 when an example ends. The number of examples is that of the hypothesis profile:
100, and 1,000 in ``nightly``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, Float, and_, delete, event, literal, select, true

from prefect_claim_dispatch import (
    Draft,
    claiming,
    engines,
    operations,
    publish,
    publish_many,
    rescuing,
    schema,
    settling,
    testing,
)
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dialects import SQLITE, now_plus
from prefect_claim_dispatch.errors import ConfigurationError, DuplicateActionError, LostLeaseError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.outcomes import Cancel, Failed, Outcome, Processed, Released, Snooze, Unprocessable
from prefect_claim_dispatch.policies import RetryPolicy, settlement_for
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.settling import settle_action
from prefect_claim_dispatch.statements import begin as begin_module
from prefect_claim_dispatch.statements import claim as claim_module
from prefect_claim_dispatch.statements import operate
from prefect_claim_dispatch.statements import publish as publish_module
from prefect_claim_dispatch.statements import renew as renew_module
from prefect_claim_dispatch.statements import rescue as rescue_module
from prefect_claim_dispatch.statements import settle as settle_module
from tests.kit.model import MAX_ATTEMPTS, TERMINAL, Model, Modelled
from tests.kit.tables import TABLE, claim_due

EXAMPLES = max(100, settings().max_examples // 10)
STEPS = 40
START = datetime(2030, 1, 1, tzinfo=UTC)
END = datetime(2100, 1, 1, tzinfo=UTC)
# Few of everything, so that what is drawn meets.
TYPES = ("a", "b", "c")
REGISTERED = ("a", "b")
POLICY = RetryPolicy(max_attempts=MAX_ATTEMPTS)  # the back-off is that of an unregistered type, too
OUTCOMES: dict[str, Outcome] = {
    "processed": Processed(),
    "failed": Failed(error_type="Boom", message="boom"),
    "unprocessable": Unprocessable(error_type="Bad", message="bad"),
    "snoozed": Snooze(timedelta(seconds=60)),
    "cancelled": Cancel("not wanted"),
    "released": Released(),
}

seconds = st.sampled_from([-3600, 0, 0, 5, 60]).map(lambda number: timedelta(seconds=number))
leases = st.sampled_from([30.5, 300.5]).map(lambda number: timedelta(seconds=number))
keys = st.sampled_from([None, "k", "l"])
outcomes = st.sampled_from(list(OUTCOMES))
intents = st.fixed_dictionaries(
    {
        "type": st.sampled_from(TYPES),
        "due_in": seconds,
        "priority": st.sampled_from([0, 0, 5]),
        "key": keys,
        "ordering_key": st.sampled_from([None, "o", "p"]),
        "on_conflict": st.sampled_from(["keep", "replace", "raise"]),
    }
).map(lambda intent: intent if intent["key"] else {**intent, "on_conflict": "keep"})

PLAIN = {"due_in": timedelta(0), "priority": 0, "ordering_key": None, "on_conflict": "keep"}


def waits(failures: int, seed: str) -> timedelta:
    """The back-off in whole milliseconds, as SQLite counts them; its arithmetic has unit tests of its own."""
    return timedelta(milliseconds=round(POLICY.delay_after(failures, seed) / timedelta(milliseconds=1)))


def key_of(raw: RawAction) -> tuple[int, int]:
    return raw.id, raw.claim_count


def in_milliseconds(instant: datetime | None) -> datetime | None:
    return instant and instant + timedelta(microseconds=500) - timedelta(
        microseconds=(instant.microsecond + 500) % 1000
    )


class HandKeeper(Keeper):
    """A keeper without its thread: it writes when it is told to."""

    def _start(self) -> None: ...

    def write(self) -> None:
        while True:
            self._write()
            assert not self._outage.is_on, "the keeper could not write"
            if not (self._verdicts or self._marks):
                return


class Lives(RuleBasedStateMachine):
    """The table of *engine*, emptied, and its model."""

    ids = Bundle("ids")
    claims = Bundle("claims")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        empty(engine)
        self.model = Model(START, waits)
        self.clock = ExitStack()
        self.clock.enter_context(testing.at(START))
        self.numbers = count()
        self.seen: dict[int, Any] = {}
        self.created = 0
        self.pruned: set[int] = set()
        self.retried: set[int] = set()
        self.won: set[tuple[int, int]] = set()

    # Publishing

    @initialize(target=ids)
    def begin_with_some(self) -> Any:
        """Due rows, or most steps of a short life would find nothing to do."""
        drafts = [{"type": type_, "key": key, **PLAIN} for type_, key in (("a", None), ("a", "k"), ("b", None))]
        return self.publish_batch(drafts)

    def modelled(self, intent: dict[str, Any], id_: int) -> Modelled:
        return Modelled(
            id=id_,
            type=intent["type"],
            payload={"n": intent["n"]},
            end_at=self.model.now + intent["due_in"],
            priority=intent["priority"],
            idempotency_key=intent["key"],
            ordering_key=intent["ordering_key"],
        )

    def draft(self, intent: dict[str, Any]) -> Draft:
        draft = Draft().type(intent["type"]).payload({"n": intent["n"]}).eligible_at(self.model.now + intent["due_in"])
        draft = draft.priority(intent["priority"]).on_conflict(intent["on_conflict"])
        draft = draft if intent["key"] is None else draft.idempotency(intent["key"])
        return draft if intent["ordering_key"] is None else draft.ordering_key(intent["ordering_key"])

    @rule(target=ids, intent=intents, commits=st.sampled_from([True, True, True, False]), by_delay=st.booleans())
    def publish(self, intent: dict[str, Any], commits: bool, by_delay: bool) -> Any:
        """In a caller's transaction: what it rolls back was never there."""
        intent["n"] = next(self.numbers)
        due_in = intent["due_in"]
        moment = {"delay": due_in} if by_delay and due_in >= timedelta(0) else {"end_at": self.model.now + due_in}
        options = {"priority": intent["priority"], "ordering_key": intent["ordering_key"], **moment}
        options |= {"idempotency_key": intent["key"], "on_conflict": intent["on_conflict"]}
        old = self.model.holder(intent["type"], intent["key"])
        with self.engine.connect() as connection:
            try:
                receipt = publish(connection, intent["type"], {"n": intent["n"]}, **options)
            except DuplicateActionError as error:
                refused = error
            else:
                refused = None
            if refused is not None:
                assert old is not None
                assert (intent["on_conflict"], refused.existing_id) == ("raise", old.id)
                return multiple()
            if not commits:
                connection.rollback()
                return multiple()
            connection.commit()
        assert receipt.id is not None
        assert old is None or receipt.id == old.id
        assert self.model.publish(self.modelled(intent, receipt.id), intent["on_conflict"]) == receipt.outcome
        return self.noted([receipt])

    @rule(target=ids, batch=st.lists(intents, min_size=1, max_size=4))
    def publish_many(self, batch: list[dict[str, Any]]) -> Any:
        """All of a batch, or nothing when one key is refused."""
        return self.publish_batch(batch)

    def publish_batch(self, batch: list[dict[str, Any]]) -> Any:
        batch = [{**intent, "n": next(self.numbers)} for intent in batch]
        taken = {(row.type, row.idempotency_key) for row in self.model.rows.values() if row.idempotency_key}
        refused = False
        for intent in batch:
            key = (intent["type"], intent["key"])
            refused = refused or (key in taken and intent["on_conflict"] == "raise")
            taken |= {key} if intent["key"] else set()
        try:
            receipts = publish_many(self.engine, [self.draft(intent) for intent in batch])
        except DuplicateActionError:
            assert refused
            return multiple()
        assert not refused
        for intent, receipt in zip(batch, receipts, strict=True):
            assert receipt.id is not None
            outcome = self.model.publish(self.modelled(intent, receipt.id), intent["on_conflict"])
            assert outcome == receipt.outcome
        return self.noted(receipts)

    def noted(self, receipts: Sequence[Any]) -> MultipleResults[int]:
        created = [receipt.id for receipt in receipts if receipt.outcome == "created"]
        self.created += len(created)
        return multiple(*created)

    # Claiming, keeping, settling, rescuing

    @rule(
        target=claims,
        types=st.sets(st.sampled_from(TYPES), min_size=1),
        limit=st.integers(1, 4),
        lease=leases,
        by=st.sampled_from(["flow-x", "flow-y", "flow-z"]),
        until=st.none() | seconds,
        may_begin=st.booleans(),
        max_running=st.none() | st.integers(1, 3),
    )
    def claim(self, types: set[str], limit: int, lease: timedelta, by: str, until: timedelta | None, **how: Any) -> Any:
        """S1 and S8: nobody holds what is claimed, and it was due."""
        return self.claim_some(types, limit, lease, by, until, **how)

    def claim_some(
        self,
        types: set[str],
        limit: int,
        lease: timedelta,
        by: str,
        until: timedelta | None,
        *,
        may_begin: bool = True,
        max_running: int | None = None,
    ) -> Any:
        horizon = self.model.now if until is None else self.model.now + until
        limit, has_ties = self.limit_past_ties(types, limit, horizon)
        if len(types) > 1 or has_ties:
            max_running = None
        raws = claim_due(
            self.engine,
            *types,
            limit=limit,
            lease=lease,
            claimed_by=by,
            until=None if until is None else horizon,
            may_begin=may_begin,
            max_running=max_running,
        )
        if max_running is not None:
            limit = min(limit, max(0, max_running - self.model.running(*types)))
        for raw in raws:
            before = self.seen[raw.id]
            assert before.status == "pending", f"S1: #{raw.id} was {before.status}"
            assert in_milliseconds(before.end_at) <= self.model.now, f"S8: #{raw.id} is not due before {before.end_at}"
        expected = self.model.claim(types, limit, lease, by, horizon, may_begin)
        self.check_order([key_of(raw) for raw in raws], expected)
        return multiple(*raws)

    def limit_past_ties(self, types: set[str], limit: int, horizon: datetime) -> tuple[int, bool]:
        """*limit*; on SQLite, where two spellings of one instant sort apart, none that could cut between them.

        And whether there are such.
        """
        rows = [row for row in self.model.rows.values() if row.type in types and self.model.is_claimable(row, horizon)]
        has_ties = len({(row.priority, row.end_at) for row in rows}) < len(rows) and self.engine.dialect.name == SQLITE
        return max(limit, len(rows)) if has_ties else limit, has_ties

    def check_order(self, claimed: list[tuple[int, int]], expected: list[Modelled]) -> None:
        wanted = [(row.id, row.claim_count) for row in expected]
        # One instant may have two spellings on SQLite, with milliseconds and with microseconds, which sort apart.
        assert claimed == wanted or (self.engine.dialect.name == SQLITE and sorted(claimed) == sorted(wanted))

    @precondition(lambda self: self.bundle("claims"))
    @rule(batch=st.lists(claims, min_size=1, max_size=4, unique_by=key_of), run_id=st.sampled_from(["r1", "r2"]))
    def begin(self, batch: list[RawAction], run_id: str) -> None:
        begun = claiming.begin(self.engine, TABLE, [(*key_of(raw), run_id) for raw in batch])

        held = self.model.held(map(key_of, batch))
        assert begun == {row.id for row in held}
        for row in held:
            row.run_id = run_id

    @precondition(lambda self: self.bundle("claims"))
    @rule(batch=st.lists(claims, min_size=1, max_size=4, unique_by=key_of), lease=leases)
    def renew(self, batch: list[RawAction], lease: timedelta) -> None:
        renewed = claiming.renew(self.engine, TABLE, list(map(key_of, batch)), lease=lease)

        assert renewed == self.model.renew(map(key_of, batch), lease)

    @precondition(lambda self: self.bundle("claims"))
    @rule(batch=st.lists(st.tuples(claims, outcomes), min_size=1, max_size=4, unique_by=lambda pair: key_of(pair[0])))
    def settle(self, batch: list[tuple[RawAction, str]]) -> None:
        """S2: claims of any age, of which only the present ones may write."""
        verdicts = [settlement_for(OUTCOMES[outcome], raw, POLICY) for raw, outcome in batch]

        settled = settling.settle(self.engine, TABLE, verdicts)

        assert settled == {row.id for row in self.model.held(key_of(raw) for raw, _ in batch)}
        self.conclude(batch)

    def conclude(self, batch: Sequence[tuple[RawAction, str]]) -> None:
        for raw, outcome in batch:
            for row in self.model.held([key_of(raw)]):
                self.model.settle(row, outcome, timedelta(seconds=60))
                self.won |= {key_of(raw)} if outcome == "processed" else set()

    @rule(raw=claims, outcome=outcomes, commits=st.booleans())
    def settle_in_own_transaction(self, raw: RawAction, outcome: str, commits: bool) -> None:
        """A processor that settles beside its own writes, and may roll both back. It has the policy of the settings."""
        is_held = bool(self.model.held([key_of(raw)]))
        with self.engine.connect() as connection:
            try:
                settle_action(connection, raw.action(), OUTCOMES[outcome if outcome != "failed" else "released"])
            except LostLeaseError:
                assert not is_held
                return
            assert is_held
            (connection.commit if commits else connection.rollback)()
        if commits:
            self.conclude([(raw, outcome if outcome != "failed" else "released")])

    @precondition(lambda self: self.bundle("claims"))
    @rule(
        batch=st.lists(st.tuples(claims, st.none() | outcomes), min_size=1, max_size=4),
        run_id=st.sampled_from([None, "r3"]),
        renews=st.booleans(),
    )
    def keep(self, batch: list[tuple[RawAction, str | None]], run_id: str | None, renews: bool) -> None:
        """A keeper to which claims were given, some with a verdict: each is written or counted as lost."""
        unique = {key_of(raw): (raw, outcome) for raw, outcome in batch}
        tally, lease = Tally(), timedelta(seconds=300.5)
        keeper = HandKeeper(self.engine, TABLE, lease=lease, tally=tally)
        keeper.hold([raw for raw, _ in unique.values()])
        for key, (raw, outcome) in unique.items():
            if run_id is not None:
                keeper.begin(key, run_id)
            if outcome is not None:
                keeper.settle(settlement_for(OUTCOMES[outcome], raw, POLICY))
        keeper._renew_at = 0.0 if renews else float("inf")
        keeper.write()

        held = self.model.held(unique)
        for row in held:
            row.run_id = run_id or row.run_id
        verdicts = [(raw, outcome) for raw, outcome in unique.values() if outcome]
        # What a processor settled in its own transaction is no lost lease.
        lost = [raw for raw, _ in verdicts if not self.model.held([key_of(raw)]) and not raw.lease.settled]
        assert tally.report().lost_leases == len(lost)
        self.conclude(verdicts)
        if renews:
            self.model.renew([key for key, (_, outcome) in unique.items() if not outcome], lease)

    @rule(limit=st.integers(1, 4))
    def rescue(self, limit: int) -> None:
        """In order of the leases' ends; those of a type that nobody here registered are never dead by it."""
        self.rescue_some(limit)

    def rescue_some(self, limit: int) -> None:
        rescued = rescuing.rescue(
            self.engine, TABLE, lambda type_: POLICY if type_ in REGISTERED else None, limit=limit
        )

        assert [settlement.id for settlement in rescued] == self.model.rescue(limit, REGISTERED)

    @precondition(lambda self: any(row.status == "claimed" for row in self.model.rows.values()))
    @rule(target=claims, by=st.sampled_from(["flow-x", "flow-y"]))
    def crash(self, by: str) -> Any:
        """All claimants are gone for as long as their leases last; then their actions are claimed anew."""
        self.move(self.model.now + timedelta(seconds=301))
        self.rescue_some(limit=100)
        self.compare()
        self.move(max(self.model.now, *(row.end_at for row in self.model.rows.values())))
        return self.claim_some(set(TYPES), 100, timedelta(seconds=30.5), by, None)

    @rule(raw=claims)
    def renew_too_late(self, raw: RawAction) -> None:
        """The table still has the claim, but not for its holder: whoever rescues it must find it."""
        for row in self.model.held([key_of(raw)]):
            assert row.lease_expires_at is not None
            self.move(max(self.model.now, row.lease_expires_at + timedelta(milliseconds=500)))
            assert claiming.renew(self.engine, TABLE, [key_of(raw)], lease=timedelta(minutes=5)) == set()

    # Operators

    @rule(data=st.data(), reason=st.just("by hand"))
    def cancel(self, data: st.DataObject, reason: str) -> None:
        where = self.drawn_filter(data, ("pending",))

        cancelled = operations.cancel(self.engine, reason=reason, **where)

        rows = self.model.select(("pending",), where)
        assert cancelled == sorted(row.id for row in rows)
        for row in rows:
            row.leave("cancelled", self.model.now, "cancelled")

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        where = self.drawn_filter(data, ("dead", "cancelled"))

        self.retried = set(operations.retry(self.engine, **where))

        assert self.retried == set(self.model.retry(where))

    @rule(data=st.data(), by=seconds)
    def reschedule(self, data: st.DataObject, by: timedelta) -> None:
        where = self.drawn_filter(data, ("pending",))
        moment = {"delay": by} if by > timedelta(0) else {"end_at": self.model.now + by}

        moved = operations.reschedule(self.engine, **moment, **where)

        rows = self.model.select(("pending",), where)
        assert moved == sorted(row.id for row in rows)
        for row in rows:
            row.end_at = self.model.now + by

    @rule(pattern=st.sampled_from(["a", "b", "*", "other.*"]))
    def pause_or_resume(self, pattern: str) -> None:
        """Whatever is paused is not claimed, and everything else goes on: the model knows no other difference."""
        if pattern in self.model.paused:
            assert operations.resume(self.engine, pattern)
            self.model.paused.remove(pattern)
        else:
            assert not operations.resume(self.engine, pattern)
            assert operations.pause(self.engine, pattern)
            self.model.paused.add(pattern)
        assert {pause.type for pause in operations.paused(self.engine)} == self.model.paused

    def drawn_filter(self, data: st.DataObject, allowed: Sequence[str]) -> dict[str, Any]:
        known = sorted({*self.seen, *self.pruned, 10**9})
        named = st.fixed_dictionaries({"ids": st.lists(st.sampled_from(known), max_size=3)})
        filters = st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES)},
            optional={"status": st.sampled_from(allowed), "idempotency_key": st.sampled_from(["k", "l"])},
        )
        keyed = st.fixed_dictionaries({"idempotency_key": st.sampled_from(["k", "l"])})
        return data.draw(named | filters | keyed, label="where")

    @rule(
        age=st.sampled_from([0, 60, 3600]),
        statuses=st.sets(st.sampled_from(TERMINAL), min_size=1).map(sorted),
        limit=st.integers(1, 4),
    )
    def prune(self, age: int, statuses: list[str], limit: int) -> None:
        pruned = operations.prune(self.engine, timedelta(seconds=age), statuses=statuses, limit=limit)

        assert all(self.seen[id_].status in TERMINAL for id_ in pruned)
        expected = self.model.prune(timedelta(seconds=age), statuses, limit)
        assert pruned == sorted(expected)
        self.pruned |= set(pruned)

    @rule(status=st.sampled_from(["pending", "claimed"]))
    def refused(self, status: str) -> None:
        """What no operator may do, whatever the table holds."""
        with pytest.raises(ConfigurationError):
            operations.retry(self.engine, status=status)
        with pytest.raises(ConfigurationError):
            operations.cancel(self.engine)
        with pytest.raises(ConfigurationError):
            operations.prune(self.engine, timedelta(0), statuses=["processed", status])

    # Time

    @rule(by=st.sampled_from([1, 25, 31, 400, 4000]))
    def pass_time(self, by: int) -> None:
        self.move(self.model.now + timedelta(seconds=by))

    @rule(id_=ids)
    def pass_time_until_due(self, id_: int) -> None:
        """To the very instant: due means at `end_at`, not after it."""
        if id_ in self.model.rows:
            self.move(max(self.model.now, self.model.rows[id_].end_at))

    def move(self, to: datetime) -> None:
        # At the very end of a lease its milliseconds on SQLite sort before the clock's microseconds: over, or not yet.
        while any(row.lease_expires_at == to for row in self.model.rows.values()):
            to += timedelta(milliseconds=1)
        self.model.now = to
        self.clock.enter_context(testing.at(to))

    # What holds at every moment

    @invariant()
    def table_is_as_modelled(self) -> None:
        self.compare()

    def compare(self) -> None:
        with self.engine.connect() as connection:
            rows = {row.id: row for row in connection.execute(select(TABLE))}
        self.check_promises(rows)
        self.seen, self.retried = rows, set()
        assert {id_: observed(row) for id_, row in rows.items()} == {
            id_: expected(row) for id_, row in self.model.rows.items()
        }

    def check_promises(self, rows: dict[int, Any]) -> None:
        for id_, row in rows.items():
            before = self.seen.get(id_)
            assert (row.status == "claimed") == (row.lease_expires_at is not None)
            assert (row.status == "processed") == (row.processed_at is not None)
            assert (row.status in TERMINAL) == (row.settled_at is not None)
            if before is not None:
                assert row.claim_count - before.claim_count in (0, 1), "S1: the fence fell or leapt"
                assert row.claim_count > before.claim_count or (before.status, row.status) != ("pending", "claimed")
                same = row._mapping == before._mapping
                assert same or before.status not in TERMINAL or id_ in self.retried, f"S3: #{id_} changed"
            assert row.fail_count <= row.claim_count, "S5: more failures than claims"
            assert row.type not in REGISTERED or row.fail_count <= MAX_ATTEMPTS, "S5: more attempts than allowed"
            assert row.status != "processed" or (id_, row.claim_count) in self.won, "S7: nobody processed it"
        assert self.created == len(rows) + len(self.pruned), "S4: an action was lost"
        named = [(row.type, row.idempotency_key) for row in rows.values() if row.idempotency_key is not None]
        assert len(named) == len(set(named)), "S6: a key twice"
        running = [row.ordering_key for row in rows.values() if row.status == "claimed" and row.ordering_key]
        assert len(running) == len(set(running)), "an ordering key runs twice"

    @rule()
    def look(self) -> None:
        """What an operator sees, and what the loop bases its decisions on."""
        counts = operations.counts(self.engine)
        survey = claiming.survey(self.engine, TABLE)

        rows = self.model.rows.values()
        over = [row for row in rows if row.lease_expires_at and row.lease_expires_at < self.model.now]
        assert counts.statuses == {status: sum(row.status == status for row in rows) for status in ActionStatus}
        due = [row for row in rows if row.status == "pending" and row.end_at <= self.model.now]
        assert (counts.due, counts.expired_leases) == (len(due), len(over))
        assert survey.has_expired_leases == bool(over)
        wanted = {(row.type, row.priority) for row in due}
        held_back = {(type_, priority) for type_, priority in wanted if self.model.is_paused(type_)}
        assert {(lane.type, lane.priority) for lane in survey.due()} == wanted - held_back
        assert {(lane.type, lane.priority) for lane in survey.held_back()} == held_back

    def teardown(self) -> None:
        """L1: once nobody interferes any more, all ends in a bounded number of rounds."""
        try:
            if sys.exc_info()[0] is None:
                self.heal()
        finally:
            self.clock.close()

    def heal(self) -> None:
        self.move(max([self.model.now, *(row.end_at for row in self.model.rows.values())]) + timedelta(days=1))
        for pattern in self.model.paused:
            operations.resume(self.engine, pattern)
        live = sum(row.status in ("pending", "claimed") for row in self.model.rows.values())
        for _ in range(live + 1):
            rescued = rescuing.rescue(self.engine, TABLE, lambda _: None, limit=1_000)
            self.move(self.model.now + timedelta(days=1))
            raws = claim_due(self.engine)
            settling.settle(self.engine, TABLE, [settlement_for(Processed(), raw, POLICY) for raw in raws])
            if not (rescued or raws):
                break
        statuses = operations.counts(self.engine).statuses
        assert statuses["pending"] == statuses["claimed"] == 0, f"L1: {statuses}"


COMPARED = (
    *("type", "payload", "end_at", "priority", "idempotency_key", "ordering_key", "status", "claimed_at"),
    *("claimed_by", "claim_count", "lease_expires_at", "run_id", "fail_count", "processed_at", "settled_at"),
)


def observed(row: Any) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in COMPARED}
    values = {name: in_milliseconds(value) if isinstance(value, datetime) else value for name, value in values.items()}
    return {**values, "errors": [error["kind"] for error in row.errors]}


def expected(row: Modelled) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in COMPARED}, "errors": row.errors}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lost leases and rescues, each of them logged, would be all that a failure shows."""
    caplog.set_level(logging.CRITICAL, logger="prefect_claim_dispatch")


def run(engine: Engine, **options: Any) -> None:
    unflushed(engine)
    chosen = {
        "stateful_step_count": STEPS,
        "suppress_health_check": list(HealthCheck),
        "deadline": None,
        "report_multiple_bugs": False,
    }
    chosen |= options
    run_state_machine_as_test(lambda: Lives(engine), settings=settings(**chosen))


def empty(engine: Engine) -> None:
    """Begin with id 1 again: back-off depends on ids, and hypothesis could not replay what it found."""
    with engine.begin() as connection:
        connection.execute(delete(schema.pauses_table()))
        if engine.dialect.name == SQLITE:
            connection.execute(delete(TABLE))
            connection.exec_driver_sql("DELETE FROM sqlite_sequence")
        else:
            connection.exec_driver_sql("TRUNCATE action_logs RESTART IDENTITY")


def unflushed(engine: Engine) -> None:
    """Let SQLite not wait for the disk: what survives a crash of the machine is not the subject here."""
    if engine.dialect.name == SQLITE:
        event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous = OFF"))


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("examples", [EXAMPLES // 4, pytest.param(EXAMPLES, marks=pytest.mark.exhaustive)])
def test_every_life_is_as_the_model_says(engine: Engine, examples: int) -> None:
    """A sequence that nobody thought of is where an action is lost, repeated or changed after its end."""
    run(engine, max_examples=examples)


def settle_without(monkeypatch: pytest.MonkeyPatch, *kept: str) -> None:
    monkeypatch.setattr(settle_module, "fence", weak_fence(*kept))
    monkeypatch.setattr(settling, "settle_statement", settle_module.settle.__wrapped__)


def weak_fence(*kept: str) -> Callable[[Any, Any], Any]:
    def fence(table: Any, rows: Any) -> Any:
        conditions = {
            "id": table.c.id == rows.c.id,
            "claim_count": table.c.claim_count == rows.c.claim_count,
            "status": table.c.status == "claimed",
        }
        return and_(*(conditions[name] for name in ("id", *kept)))

    return fence


def begin_without_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin_module, "fence", weak_fence())
    monkeypatch.setattr(claiming, "begin_statement", begin_module.begin.__wrapped__)


def renew_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renew_module, "now", lambda: now_plus(literal(-1e8, Float)))
    monkeypatch.setattr(claiming, "renew_statement", renew_module.renew.__wrapped__)


def rescue_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue_module, "now", lambda: now_plus(literal(1e8, Float)))
    monkeypatch.setattr(rescuing, "expired", rescue_module.expired.__wrapped__)


def rescue_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rescuing, "settlement_for", lambda _, action, policy: settlement_for(Released(), action, policy)
    )


def claim_what_is_not_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "_is_due", lambda _row, **_: true())
    monkeypatch.setattr(claiming, "claim_statement", claim_module.claim.__wrapped__)


def claim_past_the_ordering_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "may_run", lambda *_: true())
    monkeypatch.setattr(claiming, "claim_statement", claim_module.claim.__wrapped__)


def claim_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(*arguments: Any, **options: Any) -> Any:
        return claim_module.claim(*arguments, **options).values(claim_count=TABLE.c.claim_count)

    monkeypatch.setattr(claiming, "claim_statement", claim)


def retry_with_a_new_count(monkeypatch: pytest.MonkeyPatch) -> None:
    retry = operate.retry
    monkeypatch.setattr(operate, "retry", lambda *arguments: retry(*arguments).values(claim_count=0))


def operate_on_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def status_is(column: Any, *statuses: ActionStatus) -> Any:
        return schema.status_is(column, *(schema.LIVE if statuses == (ActionStatus.PENDING,) else statuses))

    monkeypatch.setattr(operate, "status_is", status_is)


def prune_what_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "_was_settled_before", lambda table, _, statuses: table.c.status.in_(statuses))


def replace_what_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "status_is", lambda *_: true())
    monkeypatch.setattr(publish_module, "replace_pending", publish_module.replace_pending.__wrapped__)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "settle without the count": lambda monkeypatch: settle_without(monkeypatch, "status"),
    "settle without the status": lambda monkeypatch: settle_without(monkeypatch, "claim_count"),
    "begin without the fence": begin_without_fence,
    "renew what is over": renew_what_is_over,
    "rescue what is held": rescue_what_is_held,
    "rescue for nothing": rescue_for_nothing,
    "claim what is not due": claim_what_is_not_due,
    "claim past the ordering key": claim_past_the_ordering_key,
    "claim without counting": claim_without_counting,
    "retry with a new count": retry_with_a_new_count,
    "operate on what is claimed": operate_on_claimed,
    "prune what is young": prune_what_is_young,
    "replace what is claimed": replace_what_is_claimed,
}


FOUND_SOON = ("settle without the count", "rescue for nothing", "operate on what is claimed")
PARAMETERS = [pytest.param(name, marks=() if name in FOUND_SOON else pytest.mark.exhaustive) for name in FAULTS]


@pytest.mark.parametrize("fault", PARAMETERS)
def test_machine_finds_the_fault(fault: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can't fail proves nothing: with one condition of one statement gone, it must."""
    FAULTS[fault](monkeypatch)
    engine = engines.create(sqlite_url)

    # `Exception` and not the assertion alone: a CHECK or the unique index may be what stops the fault.
    with pytest.raises(Exception):  # noqa: B017, PT011
        run(engine, max_examples=2_000, phases=[Phase.generate], derandomize=True, database=None)
    engine.dispose()
