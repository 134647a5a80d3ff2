"""Which of what waits may begin now, when some of it crashed before."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from prefect_claim_dispatch.actions import Lease, elapsed_clock
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.suspects import Trials
from tests.kit.tables import TABLE

CRASHED = json.dumps([{"kind": "failed"}, {"kind": "crashed"}])
TWICE = json.dumps([{"kind": "crashed"}, {"kind": "crashed"}])
FAILED = json.dumps([{"kind": "crashed"}, {"kind": "failed"}])
AGES = 3600.0


class Run:
    """A run as far as trials look at it."""

    def __init__(self, begun_seconds_ago: float | None) -> None:
        self.begun_at = None if begun_seconds_ago is None else elapsed_clock() - begun_seconds_ago


def claimed(id_: int, errors: str = "[]", type_: str = "a") -> RawAction:
    """A claimed row with these errors on record."""
    row = (id_, type_, "{}", "", "", 1, 0, 0, None, None, errors, None)
    return RawAction(row, Lease(expires=0.0), TABLE)  # type: ignore[arg-type]  # by position, as the package reads it


def trials(seconds: float = AGES) -> Trials:
    """Trials in which nothing of type ``harmless`` is a suspect."""
    return Trials(lambda _: seconds, lambda type_: type_ == "harmless")


def chosen(of: Trials, raws: list[RawAction], running: list[Any] | None = None, most: int = 9) -> list[int]:
    """The ids of those of *raws*, each a group, that may begin."""
    return [group[0].id for group in of.chosen([[raw] for raw in raws], most, running or [])]


@pytest.mark.parametrize(
    ("errors", "crashes"),
    [
        ("[]", 0),
        (CRASHED, 1),
        (TWICE, 2),
        (FAILED, 0),
        ("no JSON", 0),
        ('["crashed"]', 0),
        ('{"kind": "crashed"}', 0),
        ('[{"kind": ["crashed"]}]', 0),
    ],
)
def test_suspect_is_whose_last_attempt_crashed(errors: str, crashes: int) -> None:
    """One that came to an end since, even a bad one, did not kill its process; what can't be read accuses nobody."""
    raw = claimed(1, errors)

    assert (raw.crashes, trials().is_suspect(raw)) == (crashes, crashes > 0)


def test_without_suspects_all_begin_that_there_are_slots_for() -> None:
    """The normal case costs nothing, and keeps the order."""
    raws = [claimed(3), claimed(1, FAILED), claimed(2)]

    assert chosen(trials(), raws) == [3, 1, 2]
    assert chosen(trials(), raws, most=2) == [3, 1]


def test_one_suspect_begins_beside_fresh_work() -> None:
    """In its turn: what came before it goes first, and a second one waits, but nothing behind it does."""
    raws = [claimed(1), claimed(2, CRASHED), claimed(3, CRASHED), claimed(4)]

    assert chosen(trials(), raws) == [1, 2, 4]


def test_none_begins_while_another_is_on_trial() -> None:
    """Until that has ended, or lived for long enough; one whose processor was not called so far has not lived."""
    suspect, fresh = claimed(2, CRASHED), claimed(3)
    for run, wanted in ((Run(AGES - 1), [3]), (Run(None), [3]), (Run(AGES + 1), [2, 3])):
        court = trials()
        court.begun(run, claimed(1, CRASHED))  # type: ignore[arg-type]
        assert chosen(court, [suspect, fresh], [run]) == wanted
        assert chosen(court, [suspect, fresh], []) == [2, 3]


def test_fresh_work_that_begins_is_no_trial() -> None:
    """Or the first suspect would wait for it."""
    court, run = trials(), Run(0)
    court.begun(run, claimed(1, FAILED))  # type: ignore[arg-type]

    assert chosen(court, [claimed(2, CRASHED)], [run]) == [2]
    assert court.seconds_left == math.inf


def test_what_crashed_twice_begins_alone() -> None:
    """Also where others came before it; they begin when it has lived for long enough."""
    court, run = trials(), Run(1)
    raws = [claimed(1), claimed(2, TWICE), claimed(3, CRASHED)]
    assert chosen(court, raws) == [2]
    court.begun(run, raws[1])  # type: ignore[arg-type]

    assert (chosen(court, [raws[0], raws[2]], [run]), court.is_alone([run])) == ([], True)
    assert court.seconds_left == pytest.approx(AGES - 1, abs=1)
    assert (chosen(court, [raws[0], raws[2]], []), court.is_alone([])) == ([1, 3], False)


def test_what_crashed_twice_waits_for_the_others_to_end_and_not_for_ever() -> None:
    """Meanwhile nothing begins, or they would never end."""
    patient, impatient, run = trials(), trials(seconds=0.0), Run(5)
    raws = [claimed(1), claimed(2, TWICE)]

    assert (chosen(patient, raws, [run]), patient.is_alone([run])) == ([], True)
    assert patient.seconds_left == pytest.approx(AGES, abs=1)
    assert chosen(patient, raws, []) == [2]
    assert chosen(impatient, raws, [run]) == [2]
    assert (chosen(patient, raws[:1], [run]), patient.is_alone([run])) == ([1], False)  # it went elsewhere


def test_what_crashed_twice_waits_for_its_turn_like_any_suspect() -> None:
    """While another is on trial, fresh work goes on beside that."""
    court, run = trials(), Run(1)
    court.begun(run, claimed(1, CRASHED))  # type: ignore[arg-type]

    assert (chosen(court, [claimed(2, TWICE), claimed(3)], [run]), court.is_alone([run])) == ([3], False)


@pytest.mark.parametrize(("errors", "waiting"), [("[]", []), (CRASHED, [2]), (TWICE, [1, 2, 3])])
def test_what_is_claimed_to_begin_at_once_may_have_to_wait(errors: str, waiting: list[int]) -> None:
    """For its own trial, or for that of another which is to be alone."""
    assert [raw.id for raw in trials().kept_waiting([claimed(1), claimed(2, errors), claimed(3)])] == waiting


def test_harmless_types_have_no_suspects() -> None:
    """An isolated processor's crash was a child's, and can be nobody else's."""
    raws = [claimed(1, TWICE, "harmless"), claimed(2, CRASHED, "harmless"), claimed(3, CRASHED)]

    assert chosen(trials(), raws) == [1, 2, 3]
    assert [raw.id for raw in trials().kept_waiting(raws)] == [3]


def test_many_suspects_have_short_trials_until_the_last_of_them() -> None:
    """The last is not to wait for long; nor has it a longer trial than the first, since the others are over."""
    lengths: list[int] = []

    def length(suspects: int) -> float:
        lengths.append(suspects)
        return AGES

    court, run = Trials(length, lambda _: False), Run(1)
    court.begun(run, claimed(1, CRASHED))  # type: ignore[arg-type]
    for waiting in ([claimed(2, CRASHED), claimed(3), claimed(4, TWICE)], [claimed(2, CRASHED)], [claimed(3)]):
        chosen(court, waiting, [run])
        assert court.seconds_left > 0

    assert (lengths[0], lengths[-3:]) == (0, [3, 3, 0])
