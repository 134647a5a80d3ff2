"""What the soak's processes write down beside ledger and publish log: one file each, JSON lines, append only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Notes:
    """Appends to a file of this process's own in *folder*; a SIGKILL in the middle of a line costs that line alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, what: str, **facts: Any) -> None:
        """One line, with the pid and the monotonic instant."""
        line = {"what": what, "pid": os.getpid(), "at": time.monotonic(), **facts}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines, in order of time."""
    lines: list[dict[str, Any]] = []
    for file in folder.glob("*.jsonl"):
        *whole, _torn = file.read_bytes().split(b"\n")
        lines += [json.loads(line) for line in whole]
    return sorted(lines, key=lambda line: line["at"])
