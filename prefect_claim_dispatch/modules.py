"""Modules whose decorators register something, imported by name; what goes wrong in one is told as an error of ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.outcomes import redacted


def import_modules(names: Iterable[str], *, what: str) -> None:
    """Import the modules of these *names*, each of them a *what* in the words of an error.

    Raises:
        RegistrationError: one can't be imported, or something in it can't be registered.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except RegistrationError:
            raise
        except (Exception, SystemExit) as error:
            # SystemExit: a script without a __main__ guard would end the claim flow without a word.
            msg = (
                f"{what} {name!r} can't be imported ({redacted(f'{type(error).__name__}: {error}')}); "
                "check its name, PYTHONPATH and what it imports"
            )
            raise RegistrationError(msg) from error
