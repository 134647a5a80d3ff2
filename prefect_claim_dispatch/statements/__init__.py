"""Every statement that this package sends, as SQLAlchemy Core: a file for each verb of an action's life.

They are pure functions of the table and the dialect's name, built once and cached; only the modules that execute SQL
call them. All carry the execution option ``claim_dispatch_statement``, by which logs, tests and tracing can tell them
apart.
"""

from __future__ import annotations

from typing import Final

NAME: Final = "claim_dispatch_statement"
