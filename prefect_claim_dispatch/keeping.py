"""The keeper: one thread that settles, marks and renews for a claim flow, by group commit.

Work finishes at any time, in many threads; the table is written by one, a few times a second, in one statement of
each kind however much has come together. It is the only writer once a claim is made, so what it has written is what
is true.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming, settling
from prefect_claim_dispatch.actions import elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.deadlines import answered_in_time
from prefect_claim_dispatch.errors import KeeperDiedError
from prefect_claim_dispatch.fences import Key, one_of_each_action, taken_of
from prefect_claim_dispatch.marks import Marks
from prefect_claim_dispatch.outages import Outage
from prefect_claim_dispatch.policies import Settlement
from prefect_claim_dispatch.reports import Tally
from prefect_claim_dispatch.sentinel import Sentinel

logger = logging.getLogger(__name__)

COMPANY = 0.05
"""Seconds that a finished attempt waits for others to be settled with."""

BATCH = 1_000
"""Most verdicts in one statement; more are written by several."""

LAST_CHANCE = 0.5
"""Seconds before the end of a lease at which a verdict that could not be written is tried once more, at the latest."""


class Keeper:
    """Holds the claims of one flow run: `hold` them, `begin` and `settle` them; the thread does the rest.

    *lease* is renewed at a third of its length. What can't be written because the database is away is tried again,
    with pauses, until the claim's lease is over; then it is given up loudly, for the table will hand the action to
    somebody else. What was written without our hearing of it is recognised at the next try.
    """

    def __init__(self, engine: Engine, table: Table, *, lease: timedelta, tally: Tally) -> None:
        self._engine = engine
        self._table = table
        self._lease = lease
        self._tally = tally
        self._lock = threading.RLock()  # entered itself: `Condition.__enter__` keeps it where a signal's handler raises
        self._changed = threading.Condition(self._lock)
        self._written = threading.Condition(self._lock)
        # Dictionaries of what is there already, and no object for each claim: at full speed there are 50,000 a second.
        self._held: dict[Key, RawAction] = {}
        self._marks = Marks()
        self._verdicts: dict[Key, Settlement] = {}
        self._unanswered: set[Key] = set()
        self._oldest_at: float | None = None
        self._renew_at = elapsed_clock() + lease.total_seconds() / 3
        self._retry_at = 0.0
        self._outage = Outage("the action table can't be written")
        self._is_closing = False
        self._died: BaseException | None = None
        self.tell: Callable[[KeeperDiedError], None] = _nobody
        """Called, in its thread, when that dies."""
        self._thread: threading.Thread | None = None
        self._sentinel: Sentinel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hold(self, claimed: Iterable[RawAction]) -> None:
        """Keep the leases of *claimed* alive until each is settled."""
        with self._lock:
            self._held.update({(raw.id, raw.claim_count): raw for raw in claimed})
        if self._held and self._thread is None:
            self._start()

    def holds(self, key: Key) -> bool:
        """Whether the claim *key* is kept here."""
        with self._lock:
            return key in self._held

    def allow(self, claimed: Sequence[RawAction], run_id: str, timeout: float) -> bool:
        """Write down that the work of *claimed* may begin in *run_id*, and return when that is so.

        All verdicts before are written first: who dies then takes nothing with it that has ended. False when it could
        not be written, or not in *timeout* seconds; it is tried again. Of a claim that is not held any more, the lease
        is lost.
        """
        keys = [(raw.id, raw.claim_count) for raw in claimed]
        with self._lock:
            for key in keys:
                if key in self._held and key not in self._verdicts and key not in self._marks:
                    self._marks.note(key, run_id)
            self._hurry()
            self._written.wait_for(lambda: self._marks.are_written(keys) or self._is_away, timeout)
            is_written = self._marks.are_written(keys)
        if is_written:
            for raw in claimed:
                raw.lease.may_begin = True
        return is_written

    def begin(self, key: Key, run_id: str) -> None:
        """Have *run_id* written onto the row within a fraction of a second, or with its verdict if that is sooner."""
        with self._lock:
            if key in self._held and key not in self._verdicts and self._marks.note(key, run_id):
                self._note_arrival()

    def settle(self, settlement: Settlement) -> None:
        """Have *settlement* written within a fraction of a second; the first verdict on a claim counts."""
        key = settlement.id, settlement.claim_count
        with self._lock:
            if key in self._held and key not in self._verdicts:
                self._verdicts[key] = settlement
                self._marks.leave_to_verdict(key)
                self._note_arrival()

    @property
    def has_verdicts(self) -> bool:
        """Whether there are some that are not written yet."""
        return bool(self._verdicts)

    def flush(self, timeout: float, *, patiently: bool = True) -> bool:
        """Wait until all verdicts so far are written, *timeout* seconds at most; returns whether they are.

        Unless *patiently*, no longer than until one could not be written.
        """
        with self._lock:
            if self._verdicts:
                self._hurry()
            self._written.wait_for(
                lambda: not self._verdicts or (self._is_away and not patiently) or self._died, timeout
            )
            return not self._verdicts

    def close(self) -> None:
        """Write what is left, while its leases last, and end the thread.

        Claims without a verdict are left to their leases.

        Raises:
            KeeperDiedError: its thread has died before, and verdicts are not written.
        """
        with self._lock:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._sentinel is not None:
            self._sentinel.stop()
            self._sentinel = None
        if self._verdicts:
            self.check()

    def _start(self) -> None:
        # Renewal comes a third of a lease after the last at the latest; half a lease later the lease still stands.
        self._sentinel = Sentinel(self._lease.total_seconds() / 2)
        self._thread = threading.Thread(target=self._run, name="claim-dispatch-keeper", daemon=True)
        self._thread.start()

    @property
    def _is_away(self) -> bool:
        return self._outage.is_on or self._died is not None

    def _hurry(self) -> None:
        """Wait for no company."""
        self._oldest_at = 0.0
        self._changed.notify_all()

    def _note_arrival(self) -> None:
        if self._oldest_at is None:
            self._oldest_at = elapsed_clock()
            self._changed.notify_all()
        elif len(self._verdicts) >= BATCH or self._is_closing:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            with answered_in_time(self._lease):
                self._write_until_closed()
        except BaseException as error:
            # Nobody else renews and settles: what was begun would be done again, and the flow never hear of it.
            logger.critical("the thread that settles and renews has died", exc_info=True)
            with self._lock:
                self._died = error
                self._written.notify_all()
            self.tell(KeeperDiedError(type(error).__name__))

    def check(self) -> None:
        """Raise if its thread has died.

        Raises:
            KeeperDiedError: nothing is settled and renewed any more.
        """
        if self._died is not None:
            raise KeeperDiedError(type(self._died).__name__) from self._died

    def _write_until_closed(self) -> None:
        while True:
            with self._lock:
                # Asked again at every arrival: it is due before the pause that was begun without it is over.
                while (pause := self._pause()) > 0:
                    self._changed.wait(pause)
                if self._is_closing and not (self._verdicts or self._marks):
                    return
            self._write()

    def _pause(self) -> float:
        """Seconds until there is something to write."""
        now = elapsed_clock()
        if self._is_closing:
            return max(0.0, self._retry_at - now)
        pauses = [max(self._renew_at, self._retry_at) - now]
        if self._oldest_at is not None:
            full = len(self._verdicts) >= BATCH
            pauses.append(max(0.0 if full else self._oldest_at + COMPANY - now, self._retry_at - now))
        return max(0.0, min(pauses))

    def _write(self) -> None:
        if elapsed_clock() < self._retry_at:
            return
        try:
            with self._lock:
                # What arrives from now on waits for company anew; and no mark is written before an older verdict.
                self._oldest_at = None
                batches, marks = math.ceil(len(self._verdicts) / BATCH), self._marks.first(BATCH)
            for _ in range(batches):
                self._settle_batch()
            self._mark_batch(marks)
            self._note_rest()
            if elapsed_clock() >= self._renew_at:
                self._renew()
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must live: no other settles and renews
            # Never for long beside a lease: what is claimed as soon as the table is back would lose its own.
            self._retry_at = elapsed_clock() + min(self._outage.failed(error), self._lease.total_seconds() / 4)
            self._give_up_expired()
            self._take_last_chance()
            with self._lock:
                self._written.notify_all()
        else:
            self._outage.ended()
            self._retry_at = 0.0

    def _take_last_chance(self) -> None:
        """Try again before the first lease of a verdict ends, however long the pauses have become."""
        with self._lock:
            self._oldest_at = self._oldest_at or elapsed_clock()  # what could not be written has waited enough
            ends = [self._held[key].lease.expires - LAST_CHANCE for key in self._verdicts]
            now = elapsed_clock()
            self._retry_at = min([self._retry_at, *(end for end in ends if end > now)])

    def _settle_batch(self) -> None:
        with self._lock:
            batch = one_of_each_action(dict(itertools.islice(self._verdicts.items(), BATCH)))
            run_ids = self._marks.of_actions(batch)
        if not batch:
            return
        buried: dict[int, Settlement] = {}
        try:
            settled = settling.settle(self._engine, self._table, list(batch.values()), run_ids, buried)
            # A COMMIT whose answer was lost has settled them, or their processor's own transaction: that is no lost
            # lease, and nobody will do the work again.
            others = [key for key in batch if key[0] not in settled and self._may_be_settled(key)]
            ended = settling.ended(self._engine, self._table, others)
        except Exception:
            self._unanswered.update(batch)
            raise
        if buried:
            batch = {key: buried.get(key[0], settlement) for key, settlement in batch.items()}
        for key in others:
            if key[0] in ended and self._held[key].lease.settled:
                batch[key] = ended[key[0]].instead_of(batch[key])
        self._conclude(batch, settled.union(ended))

    def _may_be_settled(self, key: Key) -> bool:
        return key in self._unanswered or self._held[key].lease.settled

    def _conclude(self, batch: Mapping[Key, Settlement], settled: Container[int]) -> None:
        """Count, tell and forget the verdicts of *batch*; the table took those of the ids in *settled*."""
        taken: list[tuple[str, Settlement]] = []
        for key, settlement in batch.items():
            raw = self._held[key]
            if raw.id in settled:
                taken.append((raw.type, settlement))
            else:
                self._lose(raw, settlement)
        self._tally.settled(taken)
        # Forgotten last: whoever waits for the verdicts then finds them counted.
        with self._lock:
            for key in batch:
                del self._verdicts[key], self._held[key]
                self._marks.forget(key)
            self._unanswered.difference_update(batch)
            self._written.notify_all()

    def _lose(self, raw: RawAction, settlement: Settlement) -> None:
        raw.lease.lost = True
        self._tally.add("lost_leases")
        logger.error(
            "%s: lost the lease of claim %s; its verdict (%s) was not written, another run may do the work again",
            raw.reference,
            raw.claim_count,
            settlement.status,
        )

    def _mark_batch(self, marks: Iterable[Key]) -> None:
        with self._lock:
            runs = self._marks.to_write(marks)
        if not runs:
            return
        begun = claiming.begin(self._engine, self._table, [(*key, run_id) for key, run_id in runs.items()])
        with self._lock:
            self._lose_others(runs, begun)
            self._marks.written(runs)
            self._written.notify_all()

    def _note_rest(self) -> None:
        """What was too much for this time is written next time."""
        with self._lock:
            if self._oldest_at is None and (self._verdicts or self._marks):
                self._oldest_at = elapsed_clock()

    def _renew(self) -> None:
        """Prolong every lease that is still wanted; the ones that the table did not prolong are lost."""
        with self._lock:
            wanted = {key: raw for key, raw in self._held.items() if key not in self._verdicts and not raw.lease.lost}
        sent_at = elapsed_clock()
        renewed = claiming.renew(self._engine, self._table, list(wanted), lease=self._lease)
        self._renew_at = sent_at + self._lease.total_seconds() / 3
        for key in self._lose_others(wanted, renewed):
            wanted[key].lease.expires = sent_at + self._lease.total_seconds()

    def _lose_others(self, sent: Collection[Key], taken: Container[int]) -> list[Key]:
        """Those of *sent* that the table took by its answer *taken*; the others' leases are lost."""
        held = taken_of(sent, taken)
        for key in set(sent).difference(held):
            raw = self._held.get(key)
            if raw is not None and not raw.lease.settled and not raw.lease.lost and key not in self._verdicts:
                raw.lease.lost = True
                logger.warning("%s: lost the lease of claim %s", raw.reference, raw.claim_count)
        return held

    def _give_up_expired(self) -> None:
        """Drop verdicts whose lease is over: the action will be done again, so say it loudly."""
        with self._lock:
            now = elapsed_clock()
            expired = {key: verdict for key, verdict in self._verdicts.items() if now >= self._held[key].lease.expires}
            self._marks.keep(lambda key: self._held[key].lease.holds)
        self._conclude(expired, settled=())


def _nobody(_error: KeeperDiedError) -> None:
    """Nobody waits to be told; `Keeper.check` tells those who ask."""
