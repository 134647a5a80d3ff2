"""Findings: one sentence each, with what to do about it, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prefect_claim_dispatch.outcomes import redacted


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What *check* has found, and what to do, which is empty where nothing is. Neither shows a password."""

    level: Level
    check: str
    what: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding, ready for JSON."""
        return {"level": self.level.value, "check": self.check, "what": self.what, "do": self.remedy}


def fine(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(level=Level.OK, check=check, what=redacted(what))


def warning(check: str, what: str, remedy: str) -> Finding:
    """It works, and somebody should look."""
    return Finding(level=Level.WARNING, check=check, what=redacted(what), remedy=remedy)


def failure(check: str, what: str, remedy: str) -> Finding:
    """Actions are not done, or won't be."""
    return Finding(level=Level.ERROR, check=check, what=redacted(what), remedy=remedy)
