"""The loop with rows whose last attempt crashed: no two of them are at stake together, and all come to an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from prefect_claim_dispatch import Action, processor
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.processors import Registry
from tests.kit import looping
from tests.kit.looping import ThreadDispatcher
from tests.kit.tables import TABLE, add_many, by_status, change, seconds_from_now

pytestmark = pytest.mark.timeout(120)

COMPANY_SECONDS = 0.2  # long enough for what is started beside it to be seen there
FRESH, SUSPECT, CONVICT = 0, 1, 2  # crashes in a row


@dataclass
class Witness:
    """What each execution met when it began: who ran in this process, and who would lose an attempt if it died now."""

    engine: Engine
    running: set[int] = field(default_factory=set[int])
    met: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    at_stake: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    lock: threading.Lock = field(default_factory=threading.Lock)
    slow: set[int] = field(default_factory=set[int])

    def work(self, action: Action) -> None:
        """Look around, and stay a while."""
        with self.lock:
            for other in self.running:
                self.met[other].add(action.id)
            self.met[action.id] = set(self.running)
            self.running.add(action.id)
        with self.engine.connect() as connection:
            may_have_begun = select(TABLE.c.id).where(TABLE.c.status == "claimed", TABLE.c.run_id.is_not(None))
            self.at_stake[action.id] = set(connection.execute(may_have_begun).scalars())
        time.sleep(COMPANY_SECONDS * (15 if action.id in self.slow else 1))
        with self.lock:
            self.running.discard(action.id)


def run_loop(witness: Witness, *, rows_per_run: int | None = None, **changes: Any) -> None:
    """One claim flow with four slots, without Prefect, whose work is the witness's."""
    registry, dispatcher = Registry(), ThreadDispatcher(4)
    processor("a", registry=registry, rows_per_run=rows_per_run)(witness.work)
    looping.run_loop(witness.engine, registry, dispatcher, **changes)
    dispatcher.close()


def add_rows(engine: Engine, crashes: Sequence[int]) -> list[int]:
    """One row for each of *crashes*, due in that order."""
    records = [[{"kind": "crashed", "claim_count": count + 1} for count in range(number)] for number in crashes]
    return add_many(
        engine,
        [
            {"due_in": -60.0 + n, "fail_count": len(record), "claim_count": len(record), "errors": record}
            for n, record in enumerate(records)
        ],
    )


ORDERS = {
    "among many that are ahead": [FRESH] * 10 + [SUSPECT] * 2,
    "first": [SUSPECT] * 2 + [FRESH] * 6,
    "nobody else": [SUSPECT] * 4,
    "mixed": [FRESH, SUSPECT, FRESH, SUSPECT, CONVICT] * 3,
}


@pytest.mark.parametrize("rows_per_run", [None, 5])
@pytest.mark.parametrize("crashes", ORDERS.values(), ids=ORDERS)
def test_no_two_suspects_are_at_stake_together(engine: Engine, crashes: list[int], rows_per_run: int | None) -> None:
    """If one kills the process, no other loses its second attempt: none that waits, and none whose verdict is late."""
    ids = add_rows(engine, crashes)
    suspects = {id_ for id_, number in zip(ids, crashes, strict=True) if number}
    witness = Witness(engine)

    run_loop(witness, rows_per_run=rows_per_run)

    assert by_status(engine) == {"processed": len(ids)}
    for id_ in suspects:
        assert witness.met[id_] & suspects == set()
        assert witness.at_stake[id_] & suspects == {id_}


@pytest.mark.parametrize("rows_per_run", [None, 3])
def test_what_crashed_twice_takes_nobody_with_it(engine: Engine, rows_per_run: int | None) -> None:
    """It is the likeliest cause of both crashes, so others are kept from it: also those that never crashed."""
    crashes = [FRESH] * 3 + [CONVICT] + [FRESH] * 6 + [CONVICT]
    ids = add_rows(engine, crashes)
    witness = Witness(engine)

    run_loop(witness, rows_per_run=rows_per_run)

    assert by_status(engine) == {"processed": len(ids)}
    for id_ in (ids[3], ids[-1]):
        assert witness.met[id_] == set()
        assert witness.at_stake[id_] == {id_}


def test_fresh_work_goes_on_beside_a_suspect(engine: Engine) -> None:
    """A deploy that kills its flows leaves suspects which are hours of innocent work: they must not stop all else."""
    ids = add_rows(engine, [SUSPECT, SUSPECT, *[FRESH] * 12])
    witness = Witness(engine, slow={ids[0]})

    run_loop(witness, trial=timedelta(minutes=1), lease=timedelta(hours=1))

    assert by_status(engine) == {"processed": len(ids)}
    assert witness.met[ids[0]] == set(ids[2:])


def test_next_suspect_begins_when_the_one_before_has_lived_for_a_while(engine: Engine) -> None:
    """What kills its process mostly does so at once, and innocent work may take hours."""
    first, second = add_rows(engine, [SUSPECT, SUSPECT])
    witness = Witness(engine, slow={first})

    run_loop(witness, trial=timedelta(seconds=COMPANY_SECONDS))

    assert by_status(engine) == {"processed": 2}
    assert witness.met[second] == {first}


def test_what_crashed_twice_is_joined_by_others_when_it_has_lived_for_a_while(engine: Engine) -> None:
    """An innocent one that was killed twice must not stop its flow for the hours that it takes."""
    ids = add_rows(engine, [CONVICT, FRESH, FRESH, FRESH])
    witness = Witness(engine, slow={ids[0]})

    run_loop(witness, trial=timedelta(seconds=COMPANY_SECONDS))

    assert by_status(engine) == {"processed": 4}
    assert witness.at_stake[ids[0]] == {ids[0]}
    assert witness.met[ids[0]] == {*ids[1:]}


def test_what_crashed_twice_does_not_wait_for_ever_beside_slow_work(engine: Engine) -> None:
    """Nor does all else wait with it for as long as something runs."""
    slow, convict, fresh = add_rows(engine, [FRESH, CONVICT, FRESH])
    change(engine, convict, fresh, end_at=seconds_from_now(COMPANY_SECONDS))
    witness = Witness(engine, slow={slow})

    run_loop(witness, trial=timedelta(seconds=COMPANY_SECONDS))

    assert by_status(engine) == {"processed": 3}
    assert slow in witness.met[convict]
    assert slow in witness.met[fresh]


def test_others_still_run_side_by_side(engine: Engine) -> None:
    """Only suspects pay: the witness sees company where there is some, so it would see a suspect's too."""
    ids = add_rows(engine, [FRESH] * 8 + [SUSPECT])
    witness = Witness(engine)

    run_loop(witness)

    assert any(witness.met[id_] for id_ in ids[:8])


def test_one_claim_with_suspects_is_worked_off_without_drain(engine: Engine) -> None:
    """What waits for its trial would else wait for the next tick, and the next, and the next."""
    ids = add_rows(engine, [SUSPECT, CONVICT, FRESH, FRESH])
    witness = Witness(engine)

    run_loop(witness, drain=False)

    assert by_status(engine) == {"processed": len(ids)}


@pytest.mark.parametrize("rows_per_run", [None, 5])
def test_waiting_for_a_trial_costs_neither_an_attempt_nor_a_claim(engine: Engine, rows_per_run: int | None) -> None:
    """They are kept, and not given back and claimed again for each that is tried."""
    add_rows(engine, [SUSPECT] * 6 + [FRESH] * 6)

    run_loop(Witness(engine), rows_per_run=rows_per_run)

    with engine.connect() as connection:
        rows = connection.execute(select(TABLE.c.fail_count, TABLE.c.claim_count)).all()
    assert sorted(map(tuple, rows)) == [(0, 1)] * 6 + [(1, 2)] * 6


def test_suspects_do_not_take_the_place_of_other_work(engine: Engine) -> None:
    """A backlog that begins with more suspects than a claim is for leaves no slot empty."""
    ids = add_rows(engine, [SUSPECT] * 12 + [FRESH] * 6)
    witness = Witness(engine, slow={ids[0]})

    run_loop(witness, trial=timedelta(minutes=1), lease=timedelta(hours=1))

    assert by_status(engine) == {"processed": len(ids)}
    assert witness.met[ids[0]] == set(ids[12:])


@pytest.mark.parametrize(
    ("lease", "suspects", "seconds"),
    [(300, 1, 10), (300, 7, 10), (300, 30, 2.5), (300, 10_000, 0.1), (3, 1, 0.5), (3, 5, 0.15), (3, 0, 0.5)],
)
def test_trial_is_short_where_leases_are_or_many_wait(lease: float, suspects: int, seconds: float) -> None:
    """Ten seconds for each after a kill would be many leases of three."""
    options = LoopOptions(limit=1, concurrency=1, claimed_by="loop", lease=timedelta(seconds=lease))

    assert options.trial_of(suspects) == pytest.approx(seconds)
