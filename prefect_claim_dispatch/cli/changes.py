"""``claim-dispatch retry``, ``reschedule``, ``cancel``, ``prune``: act on actions, by id or by filter.

Named ids are changed at once. A filter may mean many, so it is previewed with ``--dry-run`` and asks unless ``--yes``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cyclopts import App, Parameter
from sqlalchemy import Engine

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.actions import ActionStatus
from prefect_claim_dispatch.cli.looks import print_rows
from prefect_claim_dispatch.cli.options import Common, Duration, Flag, Instant, Selection, UsageError
from prefect_claim_dispatch.cli.output import console, numbered, print_json, say, tell
from prefect_claim_dispatch.statements.operate import TERMINAL

BATCH: Final = 1000
PREVIEWED: Final = 20

Change = Callable[[Engine, list[int]], list[int]]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Options of a change that may touch many actions."""

    dry_run: Flag = False
    "Show what would be changed, and change nothing."

    yes: Flag = False
    "Do not ask."


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    for command in (retry, reschedule, cancel, prune):
        app.command(command)


def retry(
    *ids: int,
    selection: Selection | None = None,
    caution: Caution | None = None,
    common: Common | None = None,
) -> int:
    """Make dead or cancelled actions pending again, due now, with all attempts before them.

    Args:
        ids: The actions' ids.
        common: Database, table, and how to answer.
        selection: Which actions.
        caution: Whether to ask.
    """
    common = common or Common()
    allowed = operations.RETRYABLE
    task = _task("retried", ids, allowed, selection=selection, caution=caution, common=common)
    return task.carry_out(lambda engine, batch: operations.retry(engine, batch, table=common.table))


def cancel(
    *ids: int,
    reason: str = "cancelled by an operator",
    selection: Selection | None = None,
    caution: Caution | None = None,
    common: Common | None = None,
) -> int:
    """Cancel pending actions. Claimed ones are being worked on, and stay.

    Args:
        ids: The actions' ids.
        reason: Kept with the action.
        common: Database, table, and how to answer.
        selection: Which actions.
        caution: Whether to ask.
    """
    common = common or Common()
    allowed = (ActionStatus.PENDING,)
    task = _task("cancelled", ids, allowed, selection=selection, caution=caution, common=common)
    return task.carry_out(lambda engine, batch: operations.cancel(engine, batch, reason=reason, table=common.table))


def reschedule(
    *ids: int,
    end_at: Instant | None = None,
    delay: Duration | None = None,
    selection: Selection | None = None,
    caution: Caution | None = None,
    common: Common | None = None,
) -> int:
    """Move pending actions to another time.

    Args:
        ids: The actions' ids.
        end_at: Not before this instant: 2026-01-31T12:00:00Z.
        delay: Not before this long from now: 30s, 5m, 2h, 1d.
        common: Database, table, and how to answer.
        selection: Which actions.
        caution: Whether to ask.
    """
    if (end_at is None) == (delay is None):
        msg = "give either --end-at or --delay"
        raise UsageError(msg)
    common = common or Common()
    allowed = (ActionStatus.PENDING,)
    task = _task("rescheduled", ids, allowed, selection=selection, caution=caution, common=common)
    return task.carry_out(
        lambda engine, batch: operations.reschedule(engine, batch, end_at=end_at, delay=delay, table=common.table)
    )


def prune(
    *,
    older_than: Duration,
    status: tuple[ActionStatus, ...] = TERMINAL,
    caution: Caution | None = None,
    common: Common | None = None,
) -> int:
    """Delete actions that were settled long ago, a thousand in each transaction.

    Args:
        older_than: How long ago they were settled at least: 30d.
        status: Only these, all settled ones unless given; may be given more than once.
        common: Database, table, and how to answer.
        caution: Whether to ask.
    """
    caution, common = caution or Caution(), common or Common()
    engine = common.checked_engine()
    matched = operations.count_prunable(engine, older_than, statuses=status, table=common.table)
    is_wanted = not caution.dry_run and matched > 0
    if is_wanted and not _is_confirmed(f"delete {numbered(matched)}?", caution):
        return 1
    pruned = 0
    while is_wanted and (bite := operations.prune(engine, older_than, statuses=status, table=common.table)):
        pruned += len(bite)
    if common.json:
        print_json({"dry_run": caution.dry_run, "matched": matched, "pruned": pruned})
    else:
        say(f"{numbered(matched)} would be pruned" if caution.dry_run else f"{numbered(pruned)} pruned")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One change of actions by id or filter: find, preview, ask, change in batches, report."""

    done: str
    ids: tuple[int, ...]
    selection: Selection
    allowed: tuple[ActionStatus, ...]
    caution: Caution
    common: Common

    def carry_out(self, change: Change) -> int:
        """Returns the exit code: 1 when a named action was not changed, or the answer was no."""
        self._check_usage()
        engine = self.common.checked_engine()
        matched = self._matched(engine)
        if not matched or self.caution.dry_run:
            return self._report(engine, matched, [])
        if not self.selection.is_empty:
            self._preview(engine, matched)
            if not _is_confirmed(f"{numbered(len(matched))} will be {self.done}: go on?", self.caution):
                return 1
        changed: list[int] = []
        for start in range(0, len(matched), BATCH):
            changed += change(engine, matched[start : start + BATCH])
        return self._report(engine, matched, changed)

    def _check_usage(self) -> None:
        if not self.ids and self.selection.is_empty:
            msg = "give ids, or at least one of --type, --status, --older-than, --idempotency-key"
            raise UsageError(msg)
        if not set(self.selection.status) <= set(self.allowed):
            msg = f"only {' or '.join(self.allowed)} actions can be {self.done}"
            raise UsageError(msg)

    def _matched(self, engine: Engine) -> list[int]:
        where = self.selection.where()
        where["status"] = self.selection.status or self.allowed
        return operations.find_ids(engine, ids=self.ids or None, table=self.common.table, **where)

    def _preview(self, engine: Engine, matched: list[int]) -> None:
        if self.caution.yes or self.common.json:
            return
        print_rows(operations.find(engine, ids=matched[-PREVIEWED:], table=self.common.table))
        if len(matched) > PREVIEWED:
            tell(f"the newest {PREVIEWED} of {len(matched):,}")

    def _report(self, engine: Engine, matched: list[int], changed: list[int]) -> int:
        is_dry = self.caution.dry_run
        reached = matched if is_dry else changed
        missed = sorted(set(self.ids or matched) - set(reached))
        if self.common.json:
            print_json({"dry_run": is_dry, "matched": matched, self.done: changed, "unchanged": missed})
        else:
            if is_dry:
                print_rows(operations.find(engine, ids=matched[-PREVIEWED:], table=self.common.table))
            say(f"{numbered(len(reached))} {'would be ' if is_dry else ''}{self.done}")
            self._explain(engine, missed)
        return 1 if self.ids and missed else 0

    def _explain(self, engine: Engine, missed: list[int]) -> None:
        """Why actions were not changed: the first few, by their status."""
        found = operations.find(engine, ids=missed[:PREVIEWED], table=self.common.table)
        statuses = {row.id: row.status.value for row in found}
        for id_ in missed[:PREVIEWED]:
            tell(f"#{id_} was not {self.done}: {statuses.get(id_, 'there is no such action')}")
        if len(missed) > PREVIEWED:
            tell(f"and {len(missed) - PREVIEWED:,} more")


def _task(
    done: str,
    ids: tuple[int, ...],
    allowed: tuple[ActionStatus, ...],
    *,
    selection: Selection | None,
    caution: Caution | None,
    common: Common,
) -> _Task:
    return _Task(
        done=done,
        ids=ids,
        allowed=allowed,
        selection=selection or Selection(),
        caution=caution or Caution(),
        common=common,
    )


def _is_confirmed(question: str, caution: Caution) -> bool:
    if caution.yes:
        return True
    if not sys.stdin.isatty():
        msg = "there is nobody to ask; give --yes, or --dry-run to see what would be changed"
        raise UsageError(msg)
    console(stderr=True).print(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    tell("nothing was changed")
    return False
