"""The loop with rows whose last attempt crashed: each runs alone in its process, and all come to an end."""

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
from tests.kit.tables import TABLE, add_many, by_status

pytestmark = pytest.mark.timeout(120)

CRASH = {"fail_count": 1, "claim_count": 1, "errors": [{"kind": "crashed", "claim_count": 1}]}
COMPANY_SECONDS = 0.2  # long enough for what is started beside it to be seen there


@dataclass
class Witness:
    """What each execution met when it began: the others that ran in this process, and what was claimed of the table."""

    engine: Engine
    running: set[int] = field(default_factory=set[int])
    met: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    claimed: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
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
            claimed = connection.execute(select(TABLE.c.id).where(TABLE.c.status == "claimed")).scalars()
            self.claimed[action.id] = set(claimed)
        time.sleep(COMPANY_SECONDS * (10 if action.id in self.slow else 1))
        with self.lock:
            self.running.discard(action.id)


def run_loop(witness: Witness, **changes: Any) -> None:
    """One claim flow with four slots, without Prefect, whose work is the witness's."""
    registry, dispatcher = Registry(), ThreadDispatcher(4)
    processor("a", registry=registry)(witness.work)
    looping.run_loop(witness.engine, registry, dispatcher, **changes)
    dispatcher.close()


def add_rows(engine: Engine, suspects: Sequence[bool]) -> list[int]:
    """One row for each of *suspects*, due in that order."""
    rows = [{"due_in": -60.0 + n, **(CRASH if is_suspect else {})} for n, is_suspect in enumerate(suspects)]
    return add_many(engine, rows)


@pytest.mark.parametrize(
    "suspects",
    [[False] * 10 + [True], [True] + [False] * 6, [True] * 3, [False, True, False, True, False] * 3],
    ids=["among many that are ahead", "first", "nobody else", "mixed"],
)
def test_suspect_runs_alone(engine: Engine, suspects: list[bool]) -> None:
    """If it kills the process, no other claim is open: not one that runs, nor one that waits, nor a late verdict."""
    ids = add_rows(engine, suspects)
    witness = Witness(engine)

    run_loop(witness)

    assert by_status(engine) == {"processed": len(ids)}
    for id_, is_suspect in zip(ids, suspects, strict=True):
        if is_suspect:
            assert witness.met[id_] == set()
            assert witness.claimed[id_] == {id_}
        else:
            accused = {other for other, guilty in zip(ids, suspects, strict=True) if guilty}
            assert not witness.met[id_] & accused


def test_others_still_run_side_by_side(engine: Engine) -> None:
    """Only suspects pay: the witness sees company where there is some, so it would see a suspect's too."""
    ids = add_rows(engine, [False] * 8 + [True])
    witness = Witness(engine)

    run_loop(witness)

    assert any(witness.met[id_] for id_ in ids[:8])


def test_one_claim_with_suspects_is_worked_off_without_drain(engine: Engine) -> None:
    """What was given back to let a suspect run alone would else wait for the next tick, and the next, and the next."""
    ids = add_rows(engine, [True, True, False, False])
    witness = Witness(engine)

    run_loop(witness, drain=False)

    assert by_status(engine) == {"processed": len(ids)}


def test_a_release_costs_the_suspects_no_attempt(engine: Engine) -> None:
    """Waiting for its turn is no attempt."""
    add_rows(engine, [True] * 4)
    witness = Witness(engine)

    run_loop(witness)

    with engine.connect() as connection:
        assert set(connection.execute(select(TABLE.c.fail_count)).scalars()) == {1}


def test_slow_suspect_is_soon_joined_by_others(engine: Engine) -> None:
    """A deploy that kills its flows leaves suspects which are hours of innocent work: they must not stop all else."""
    ids = add_rows(engine, [True, False, False, False])
    witness = Witness(engine, slow={ids[0]})

    run_loop(witness, alone=timedelta(seconds=COMPANY_SECONDS))

    assert by_status(engine) == {"processed": 4}
    assert witness.claimed[ids[0]] == {ids[0]}
    assert witness.met[ids[0]] == {*ids[1:]}


def test_suspect_does_not_wait_for_ever_beside_slow_work(engine: Engine) -> None:
    """Nor is a row left behind for as long as something runs."""
    first, second = add_rows(engine, [True, True])
    witness = Witness(engine, slow={first})

    run_loop(witness, alone=timedelta(seconds=COMPANY_SECONDS), patience=timedelta(seconds=2 * COMPANY_SECONDS))

    assert by_status(engine) == {"processed": 2}
    assert witness.met[second] == {first}


def test_suspects_among_themselves_are_claimed_one_by_one(engine: Engine) -> None:
    """Claimed together, all but one would be given back each time, and the counts of claims would grow as a square."""
    add_rows(engine, [True] * 5)

    run_loop(Witness(engine))

    with engine.connect() as connection:
        counts = connection.execute(select(TABLE.c.claim_count).order_by(TABLE.c.claim_count)).scalars().all()
    assert by_status(engine) == {"processed": 5}
    assert counts == [2, 3, 3, 3, 3]


def test_suspect_runs_alone_for_a_part_of_a_short_lease_only() -> None:
    """Ten seconds after each kill would cost a flow with a lease of three most of its slots."""
    common: dict[str, Any] = {"limit": 1, "concurrency": 1, "claimed_by": "loop"}

    assert LoopOptions(lease=timedelta(seconds=3), **common).alone_within == timedelta(seconds=0.5)
    assert LoopOptions(lease=timedelta(minutes=5), **common).alone_within == timedelta(seconds=10)
