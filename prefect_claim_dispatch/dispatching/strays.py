"""Strays: due actions that nobody here can do, or may do now. They wait, and are told of once for each run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import claiming
from prefect_claim_dispatch.claiming import Lane
from prefect_claim_dispatch.errors import DatabaseUnavailableError
from prefect_claim_dispatch.reports import Tally

logger = logging.getLogger(__name__)

NAMED = 10
"""How many types the warning names."""


def report_strays(engine: Engine, table: Table, tally: Tally, lanes: Sequence[Lane]) -> None:
    """Count the due actions of *lanes* as unroutable, and warn of their types."""
    if not lanes:
        return
    try:
        tally.add("unroutable", claiming.count_due(engine, table, lanes))
    except DatabaseUnavailableError as error:  # all work is done: no reason to fail now
        logger.warning("due actions without a processor can't be counted: %s", error)
    types = ", ".join(sorted({lane.type for lane in lanes})[:NAMED])
    logger.warning("due actions of types without a processor: %s; they wait until one is registered", types)


def report_held_back(engine: Engine, table: Table, tally: Tally, lanes: Sequence[Lane]) -> None:
    """Count the due actions of *lanes* as held back, by a pause or by their `max_running`, and tell their types."""
    if not lanes:
        return
    try:
        tally.add("held_back", claiming.count_due(engine, table, lanes))
    except DatabaseUnavailableError as error:  # as above
        logger.warning("due actions that are held back can't be counted: %s", error)
    types = ", ".join(sorted({lane.type for lane in lanes})[:NAMED])
    logger.info("due actions of types that are paused, or of which as many run as may: %s", types)


def report_blocked(lanes: Sequence[Lane]) -> None:
    """Tell the types of due actions that can't be claimed, though they have a processor here."""
    if lanes:
        types = ", ".join(sorted({lane.type for lane in lanes})[:NAMED])
        logger.warning(
            "due actions wait for another of the same ordering key, or for a transaction that has locked them: %s; "
            "claim-dispatch doctor names the actions that hold others back",
            types,
        )
