"""The command line in a process of its own that costs no start of Python: a fork of one that has imported it."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_claim_dispatch import cli
from tests.kit.forks import ForkServer

PRELOAD = ("tests.kit.commanding", "prefect_claim_dispatch.migrations", "sqlalchemy.dialects.postgresql", "psycopg")
"""Not Prefect: it reads its settings when it is imported, and each command has settings of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command line came to."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """The one JSON document of standard output."""
        return json.loads(self.output)


def command(server: ForkServer, arguments: list[str], *, stdin: str, environment: dict[str, str], cwd: Path) -> Answer:
    """Run ``claim-dispatch`` with *arguments* in *cwd*, with nothing in its environment but *environment*."""
    files = [cwd / f".{name}" for name in ("stdin", "stdout", "stderr")]
    files[0].write_text(stdin)
    code = server.call("tests.kit.commanding:live", arguments, environment, str(cwd), [str(file) for file in files])
    output, errors = (file.read_text(errors="replace") for file in files[1:])
    for file in files:
        file.unlink()
    return Answer(code=code, output=output, errors=errors)


def live(arguments: list[str], environment: dict[str, str], cwd: str, files: list[str]) -> int:
    """The life of the fork, what `python -m prefect_claim_dispatch.cli` does; returns the exit code."""
    os.chdir(cwd)
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(0, "r"), encoding="utf-8"),
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8"),
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding="utf-8", line_buffering=True),
    )
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["claim-dispatch", *arguments]
    sys.path[0] = ""
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
