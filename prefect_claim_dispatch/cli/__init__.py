"""The command line ``claim-dispatch``: publish, look, act, migrate, run.

Answers go to standard output and everything else to standard error. Exit codes: 0 done, 1 the operation failed, 2 wrong
usage. Heavy things (Prefect, Alembic) are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from cyclopts import App, CycloptsError, Parameter
from sqlalchemy.exc import DBAPIError

from prefect_claim_dispatch import __version__
from prefect_claim_dispatch.cli import (
    catalogues,
    changes,
    doctoring,
    looks,
    pausing,
    publishing,
    ruling,
    running,
    schemas,
)
from prefect_claim_dispatch.cli.options import UsageError
from prefect_claim_dispatch.cli.output import complain
from prefect_claim_dispatch.errors import ClaimDispatchError
from prefect_claim_dispatch.outcomes import redacted

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

app = App(
    name="claim-dispatch",
    help="Publish actions, see what became of them, and run the flow that dispatches them.",
    version=__version__,
    result_action="return_value",
    help_format="plaintext",
    # No --no-json, no --empty-status; what a default means is in the words of each option.
    default_parameter=Parameter(negative="", show_default=False),
    suppress_keyboard_interrupt=False,
)
for group in (schemas, publishing, catalogues, running, looks, changes, pausing, ruling, doctoring):
    group.register(app)


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end a command in the middle
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. ``--debug`` shows the traceback of what went wrong."""
    try:
        result = app(list(arguments), exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (CycloptsError, UsageError) as error:
        return _wrong_usage(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        if "--debug" in arguments:
            traceback.print_exc()
        complain(_explained(error))
        return FAILED
    return result if isinstance(result, int) else DONE


def _wrong_usage(error: Exception) -> int:
    complain(" ".join(str(error).split()))
    complain("see: claim-dispatch --help", label="")
    return WRONG_USAGE


def _explained(error: Exception) -> str:
    match error:
        case ClaimDispatchError():
            return str(error)
        case DBAPIError():
            return f"the database refuses: {redacted(str(error.orig).strip().split(chr(10))[0], 300)}"
        case _:
            what = redacted(str(error), 300)
            return f"unexpected {type(error).__name__}: {what}; run it again with --debug to see where"
