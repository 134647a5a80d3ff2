"""Fences: which claim of which action is meant, where the table answers with the ids of actions alone."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import TypeVar

Key = tuple[int, int]
"""A claim: `id` and `claim_count`."""

Verdict = TypeVar("Verdict")


def taken_of(sent: Collection[Key], taken: Container[int]) -> list[Key]:
    """Those of the claims *sent* that the table took, by the ids of its answer *taken*.

    Of an action that was lost and claimed again by the same process, only the later claim is meant: the earlier, taken
    for held, would begin to work beside it.
    """
    latest = dict(sorted(sent))
    return [key for key in sent if key[0] in taken and latest[key[0]] == key[1]]


def one_of_each_action(verdicts: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
    """*verdicts*, each action once: of an action that was lost and claimed again here, the later verdict waits.

    The table answers with ids, which must not tell the one for the other.
    """
    firsts = {id_: (id_, claim_count) for id_, claim_count in reversed(list(verdicts))}
    if len(firsts) == len(verdicts):
        return dict(verdicts)
    return {key: verdicts[key] for key in reversed(firsts.values())}
