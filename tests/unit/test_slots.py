"""Slots: every way to wait for the runs that a claim flow has started."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from prefect_claim_dispatch.dispatching.slots import Slots

pytestmark = pytest.mark.timeout(20)
FOR_EVER = 3_600.0


def run() -> Any:
    """Something that takes a slot."""
    return object()


def test_end_is_seen_though_another_has_begun_since() -> None:
    """A suspect begins as soon as the one before has ended: as many run then as before, which nobody may sleep on."""
    slots = Slots(4)
    first, second = run(), run()
    slots.take(first)
    ended = slots.ended

    slots.free(first)
    slots.take(second)
    slots.wait_for_more_ended(ended, FOR_EVER)

    assert slots.ended == ended + 1
    assert slots.runs == [second]


def test_end_wakes_whoever_waits_for_it() -> None:
    """And not the next look."""
    slots, only = Slots(1), run()
    slots.take(only)
    waiting = threading.Thread(target=slots.wait_for_more_ended, args=(slots.ended, FOR_EVER), daemon=True)
    waiting.start()

    slots.free(only)
    waiting.join(10)

    assert not waiting.is_alive()


def test_without_an_end_it_is_over_in_time() -> None:
    """Something may have become due meanwhile, with slots free."""
    slots = Slots(1)
    slots.take(run())

    slots.wait_for_more_ended(slots.ended, 0.01)

    assert slots.ended == 0


def test_wake_up_before_the_sleep_is_not_lost() -> None:
    """What was published between the look and the sleep would wait for the next look else."""
    slots = Slots(1)

    slots.wake()
    slots.doze(FOR_EVER)

    slots.heed()
    slots.doze(0.01)


def test_wake_up_ends_the_wait_for_runs_only_where_there_is_a_slot() -> None:
    """Without one nothing could be claimed, and a flood of publishing would be one of looks in vain."""
    free, full = Slots(2), Slots(1)
    for slots in (free, full):
        slots.take(run())
        slots.wake()

    free.wait_for_more_ended_or_wake(free.ended, FOR_EVER)
    full.wait_for_more_ended_or_wake(full.ended, 0.01)

    assert (free.ended, full.ended) == (0, 0)


def test_every_wait_ends_when_nobody_can_settle_any_more() -> None:
    """What ends the flow must not wait for the runs to end, which may take hours."""
    slots, heard = Slots(1), list[BaseException]()
    slots.take(run())

    def wait() -> None:
        try:
            slots.wait_for_none()
        except RuntimeError as error:
            heard.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    slots.fail(RuntimeError("the keeper is dead"))
    waiting.join(10)

    assert [str(error) for error in heard] == ["the keeper is dead"]
    with pytest.raises(RuntimeError):
        slots.pause(FOR_EVER)
