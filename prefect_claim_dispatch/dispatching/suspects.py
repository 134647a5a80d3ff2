"""Suspects: actions whose last attempt crashed. Each may be what took its process, so each runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_claim_dispatch.claiming import RawAction


class Portion(NamedTuple):
    """What of a claim is dispatched now, and what is given back."""

    kept: list[RawAction]
    given_back: list[RawAction]
    has_suspects: bool


def portion_of(claimed: Sequence[RawAction], *, is_busy: bool) -> Portion:
    """What of *claimed* may be dispatched now: all of it; of a claim with suspects, one of them and nothing else.

    Beside work that runs already no suspect is kept, or the two could take each other's attempts; the others are.
    Whoever gets a portion with suspects waits until all of it has ended before the next claim: then nothing runs, and
    a suspect's turn comes however much else is due.
    """
    suspects = [raw for raw in claimed if raw.is_suspect]
    if not suspects:
        return Portion(list(claimed), [], has_suspects=False)
    first = suspects[0]
    kept = [raw for raw in claimed if not raw.is_suspect] if is_busy else [first]
    given_back = suspects if is_busy else [raw for raw in claimed if raw is not first]
    return Portion(kept, given_back, has_suspects=True)
