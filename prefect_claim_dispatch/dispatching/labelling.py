"""Labelling: the claim flow's run tells from which table it claims, for `claim-dispatch doctor`."""

from __future__ import annotations

import logging
from typing import Final

import httpx
from prefect.context import FlowRunContext
from sqlalchemy import Engine, Table

from prefect_claim_dispatch import outstanding
from prefect_claim_dispatch.dispatching.reaching import impatient_client
from prefect_claim_dispatch.errors import DatabaseError

logger = logging.getLogger(__name__)

TABLE_LABEL: Final = "claim-dispatch.table"
"""Label of a flow run: the identity of its action table. A hash; neither address nor name is shown."""


def label_run(engine: Engine, table: Table) -> None:
    """Label the flow run that this is, where a deployment has it: of others, whoever starts them knows the database."""
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.deployment_id is None:
        return
    try:
        with impatient_client() as client:
            client.update_flow_run_labels(run.id, {TABLE_LABEL: outstanding.identity(engine, table)})
    except (httpx.HTTPError, RuntimeError, DatabaseError) as error:
        logger.debug("the run has no label of its table", exc_info=error)  # nothing that claims looks at it
