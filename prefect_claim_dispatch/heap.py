"""What lives already is left out of garbage collections while a claim flow works."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

# Python 3.12 starts with some hundred objects frozen; whoever freezes a heap freezes more.
FROZEN_AT_START: Final = 1_000

YOUNG: Final = 20_000
"""New objects that set off a collection, where Python's 700 (2,000 from 3.13 on) would in the middle of each claim."""


@contextmanager
def frozen() -> Generator[None]:
    """Keep what lives now, and will live on, out of every garbage collection until the block ends.

    A process that has imported Prefect holds 300,000 objects. To look through them all stops every thread for 0.2 s,
    and the more rows a second are claimed, the oftener that happens. Garbage that is there now waits till the end.
    What is young is looked through seldom, too: a claimed row is several objects, freed when it is settled.
    What somebody else has frozen, an application or another flow of this process, is left as it is.
    """
    if gc.get_freeze_count() > FROZEN_AT_START:
        yield
        return
    young, *older = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(young, YOUNG) if young else 0, *older)  # 0: somebody collects by hand
    try:
        yield
    finally:
        gc.set_threshold(young, *older)
        gc.unfreeze()
