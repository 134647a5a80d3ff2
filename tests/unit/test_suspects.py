"""Which part of a claim may run now, when some of it crashed before."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from prefect_claim_dispatch.actions import Lease
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.dispatching.suspects import Portion, Suspicion, portion_of
from tests.kit.tables import TABLE

CRASHED = json.dumps([{"kind": "failed"}, {"kind": "crashed"}])
FAILED = json.dumps([{"kind": "crashed"}, {"kind": "failed"}])


def claimed(id_: int, errors: str = "[]") -> RawAction:
    """A claimed row with these errors on record."""
    row = (id_, "a", "{}", "", "", 1, 0, 0, None, None, errors, None)
    return RawAction(row, Lease(expires=0.0), TABLE)  # type: ignore[arg-type]  # by position, as the package reads it


def portion(raws: list[RawAction], *, is_busy: bool, patience: timedelta = timedelta(hours=1)) -> Portion:
    """What of *raws* may run, when no type is isolated."""
    return portion_of(raws, Suspicion(patience, lambda _: False).among(raws), is_busy=is_busy)


def ids(raws: list[RawAction]) -> list[int]:
    """Their ids."""
    return [raw.id for raw in raws]


@pytest.mark.parametrize(
    ("errors", "is_suspect"),
    [
        ("[]", False),
        (CRASHED, True),
        (FAILED, False),
        ("no JSON", False),
        ('["crashed"]', False),
        ('{"kind": "crashed"}', False),
        ('[{"kind": ["crashed"]}]', False),
    ],
)
def test_suspect_is_whose_last_attempt_crashed(errors: str, is_suspect: bool) -> None:
    """One that came to an end since, even a bad one, did not kill its process; what can't be read accuses nobody."""
    assert claimed(1, errors).is_suspect is is_suspect


@pytest.mark.parametrize("is_busy", [False, True])
def test_claim_without_suspects_is_kept_whole(is_busy: bool) -> None:
    """The normal case costs nothing: nothing is given back, nobody waits."""
    now = portion([claimed(1), claimed(2, FAILED)], is_busy=is_busy)

    assert ids(now.kept) == [1, 2]
    assert (now.given_back, now.has_suspects) == ([], False)


def test_when_nothing_runs_the_first_suspect_is_kept_alone() -> None:
    """It would take the others with it; it comes first, or a full backlog would put it off for ever."""
    now = portion([claimed(1), claimed(2, CRASHED), claimed(3), claimed(4, CRASHED)], is_busy=False)

    assert ids(now.kept) == [2]
    assert ids(now.given_back) == [1, 3, 4]
    assert now.has_suspects


def test_beside_running_work_no_suspect_is_kept() -> None:
    """What runs may crash as well, and the suspect has lost an attempt already."""
    now = portion([claimed(1), claimed(2, CRASHED), claimed(3), claimed(4, CRASHED)], is_busy=True)

    assert ids(now.kept) == [1, 3]
    assert ids(now.given_back) == [2, 4]
    assert now.has_suspects


def test_suspect_waits_no_longer_than_its_patience() -> None:
    """A flow that is never idle would put it off for ever, and a deploy leaves suspects that are nothing but slow."""
    raws = [claimed(1), claimed(2, CRASHED)]

    now = portion(raws, is_busy=True, patience=timedelta(0))

    assert (ids(now.kept), now.has_suspects) == ([1, 2], False)


def test_isolated_processors_have_no_suspects() -> None:
    """Their crash was a child's, and can be nobody else's."""
    raws = [claimed(1), claimed(2, CRASHED)]

    assert Suspicion(timedelta(hours=1), lambda type_: type_ == "a").among(raws) == []
