"""The demo's sums: what the table says against what really arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from sqlalchemy import Engine

from prefect_claim_dispatch import operations
from prefect_claim_dispatch.demo.scenario import shortfalls
from prefect_claim_dispatch.rows import ActionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What holds, what does not, and the rescues that happened."""

    findings: tuple[str, ...]
    complaints: tuple[str, ...]
    rescues: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim of the demo holds."""
        return not self.complaints

    @property
    def rescued(self) -> int:
        """How many actions were rescued from the killed flow."""
        return len(self.rescues)


def audited(engine: Engine, mail_keys: Sequence[str], call_keys: Sequence[str]) -> Audit:
    """Compare the table with the sinks.

    *mail_keys* are the Message-IDs and *call_keys* the idempotency keys of what arrived.
    """
    rows = operations.find(engine, limit=None)
    crashed = [row for row in rows if _has_crashed(row)]
    counted = Counter((row.type, str(row.status)) for row in rows)
    complaints = shortfalls(dict(counted))
    findings: list[str] = []
    for name, type_, keys in (
        ("mail", "email.welcome", [unquote(key.strip("<>").partition("@")[0]) for key in mail_keys]),
        ("call", "webhook.deliver", call_keys),
    ):
        good, bad = _arrivals(name, [row for row in rows if row.type == type_], Counter(keys))
        findings += good
        complaints += bad
    if not crashed:
        complaints.append("a claim flow was killed, and yet no action was rescued from it")
    total = len(rows)
    accounted = sum(counted.values())
    findings.append(f"{total} published = {' + '.join(f'{n} {s}' for s, n in _by_status(rows).items())} = {accounted}")
    return Audit(
        findings=tuple(findings),
        complaints=tuple(complaints),
        rescues=tuple(_rescue_line(row) for row in crashed),
    )


def _arrivals(name: str, rows: list[ActionRow], arrived: Counter[str]) -> tuple[list[str], list[str]]:
    """Each action's effect once; twice only where a crash between the effect and its settlement is on record."""
    complaints: list[str] = []
    once = repeated = 0
    for row in rows:
        times = arrived.pop(f"action_logs:{row.id}", 0)
        if row.status != "processed":
            continue
        crashes = sum(error.get("kind") == "crashed" for error in row.errors)
        once += times == 1
        repeated += times > 1
        if not 1 <= times <= 1 + crashes:
            complaints.append(f"{name} of #{row.id} arrived {times} times with {crashes} crashes on record")
    if arrived:
        complaints.append(f"{sum(arrived.values())} {name}s arrived that no action asked for")
    line = f"{once} {name}s arrived exactly once"
    if repeated:
        line += f"; {repeated} arrived twice with the same key, each killed between its effect and its settlement"
    return [line], complaints


def _has_crashed(row: ActionRow) -> bool:
    return any(error.get("kind") == "crashed" for error in row.errors)


def _by_status(rows: list[ActionRow]) -> dict[str, int]:
    return dict(sorted(Counter(str(row.status) for row in rows).items()))


def _rescue_line(row: ActionRow) -> str:
    return f"#{row.id} {row.type}: claimed {row.claim_count} times, {row.status} in attempt {row.fail_count + 1}"
