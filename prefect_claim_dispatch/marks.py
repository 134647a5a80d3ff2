"""Marks: which run works, or may begin to, under each claim, and what of that the table does not know yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from prefect_claim_dispatch.fences import Key


class Marks:
    """The `run_id` of each claim, and which of them are to be written. For one thread at a time: the keeper has a lock.

    No object for each claim: at full speed there are 50,000 a second.
    """

    def __init__(self) -> None:
        self._run_ids: dict[Key, str] = {}
        self._unwritten: set[Key] = set()

    def __len__(self) -> int:
        """How many are to be written."""
        return len(self._unwritten)

    def __contains__(self, key: Key) -> bool:
        """Whether a run is known of the claim, written or not."""
        return key in self._run_ids

    def note(self, key: Key, run_id: str) -> bool:
        """Have *run_id* written for the claim; False if it is known already."""
        if self._run_ids.get(key) == run_id:
            return False
        self._run_ids[key] = run_id
        self._unwritten.add(key)
        return True

    def are_written(self, keys: Iterable[Key]) -> bool:
        """Whether none of *keys* is still to be written."""
        return self._unwritten.isdisjoint(keys)

    def first(self, number: int) -> list[Key]:
        """Up to *number* of those that are to be written."""
        return list(itertools.islice(self._unwritten, number))

    def to_write(self, keys: Iterable[Key]) -> dict[Key, str]:
        """The runs of those of *keys* that are still to be written."""
        return {key: self._run_ids[key] for key in keys if key in self._unwritten}

    def written(self, runs: Mapping[Key, str]) -> None:
        """The table knows *runs*; a claim whose run has changed meanwhile is to be written again."""
        self._unwritten.difference_update(key for key, run_id in runs.items() if self._run_ids.get(key) == run_id)

    def leave_to_verdict(self, key: Key) -> None:
        """Not to be written by itself: a verdict on the claim is, and takes its run along."""
        self._unwritten.discard(key)

    def keep(self, is_wanted: Callable[[Key], bool]) -> None:
        """Write no others."""
        self._unwritten = set(filter(is_wanted, self._unwritten))

    def of_actions(self, keys: Iterable[Key]) -> dict[int, str]:
        """The known runs of *keys*, by the ids of the actions."""
        return {key[0]: self._run_ids[key] for key in keys if key in self._run_ids}

    def forget(self, key: Key) -> None:
        """The claim is over."""
        self._run_ids.pop(key, None)
        self._unwritten.discard(key)
