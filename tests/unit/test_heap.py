"""What lives already is left out of garbage collections, and comes back whatever happens."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prefect_claim_dispatch import heap


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Nothing is frozen before a test or after it."""
    threshold = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_lives_is_frozen_until_the_block_ends() -> None:
    """Thousands of objects, which no collection looks through meanwhile."""
    with heap.frozen():
        assert gc.get_freeze_count() > 1_000

    assert gc.get_freeze_count() == 0


def test_a_fresh_process_is_frozen_too() -> None:
    """Whatever Python itself has frozen when it starts."""
    code = (
        "import gc, prefect_claim_dispatch\n"
        "from prefect_claim_dispatch import heap\n"
        "with heap.frozen():\n"
        "    print(gc.get_freeze_count())\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) > 10_000


def test_it_thaws_when_the_flow_fails() -> None:
    """A process that goes on must not keep its garbage for ever."""
    with pytest.raises(RuntimeError), heap.frozen():
        raise RuntimeError

    assert gc.get_freeze_count() == 0


def test_what_an_application_froze_stays_frozen() -> None:
    """A server that froze its heap before it forked shares those pages; a flow inside a flow ends first."""
    gc.freeze()
    before = gc.get_freeze_count()

    with heap.frozen():
        pass

    # Not all of them: what other tests left is freed by its last reference, frozen or not.
    assert gc.get_freeze_count() >= before * 0.99


def test_what_is_young_is_looked_through_seldom() -> None:
    """And as before when the block ends, also where the flow failed."""
    before = gc.get_threshold()

    with pytest.raises(RuntimeError), heap.frozen():
        assert gc.get_threshold() == (heap.YOUNG, *before[1:])
        raise RuntimeError

    assert gc.get_threshold() == before


@pytest.mark.parametrize("young", [0, 50_000])
def test_application_that_collects_less_is_left_so(young: int) -> None:
    """By hand, or more seldom than we would."""
    gc.set_threshold(young, 10, 10)

    with heap.frozen():
        assert gc.get_threshold()[0] == young
