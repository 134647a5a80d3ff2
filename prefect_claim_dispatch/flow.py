"""The claim flow: claims what is due and dispatches each action to its processor, in a Prefect run of its own."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Annotated, Any, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow
from prefect.logging import get_run_logger
from prefect.utilities.callables import get_call_parameters
from pydantic import Field
from sqlalchemy import Engine, Table

from prefect_claim_dispatch import databases, engines, heap
from prefect_claim_dispatch.dispatching import runners
from prefect_claim_dispatch.dispatching.dispatchers import RoutingDispatcher
from prefect_claim_dispatch.dispatching.elsewhere import Elsewhere
from prefect_claim_dispatch.dispatching.labelling import label_run
from prefect_claim_dispatch.dispatching.locating import database_url
from prefect_claim_dispatch.dispatching.loop import ClaimLoop
from prefect_claim_dispatch.dispatching.options import LoopOptions
from prefect_claim_dispatch.dispatching.own_run import OwnRun
from prefect_claim_dispatch.dispatching.reaching import ApiWatch, create_flow_run, require_api
from prefect_claim_dispatch.dispatching.routing import Routing
from prefect_claim_dispatch.dispatching.runners import Pool, RunnerDispatcher
from prefect_claim_dispatch.dispatching.shield import shielded
from prefect_claim_dispatch.errors import ClaimDispatchError, FlowStoppedError
from prefect_claim_dispatch.keeping import Keeper
from prefect_claim_dispatch.migrations import check_version
from prefect_claim_dispatch.processors import load_modules, registry
from prefect_claim_dispatch.reports import DispatchReport, Tally
from prefect_claim_dispatch.settings import PREFIX, Settings
from prefect_claim_dispatch.settings import load as load_settings

ARTIFACT_KEY = "claim-dispatch"

# What the API itself refuses, before there is a run that fails: in the form of the UI, and in a deployment. Not by
# Prefect's own validation of a call: that refuses with a traceback, and `LoopOptions.check` in one line.
Count = Annotated[int, Field(json_schema_extra={"minimum": 1})]
Lasting = Annotated[timedelta, Field(json_schema_extra={"pattern": "^[^-]*[1-9]"})]
Duration = Annotated[timedelta, Field(json_schema_extra={"pattern": "^[^-]"})]


@flow(name="claim-dispatch", retries=0, persist_result=False)
def claim_dispatch(  # noqa: PLR0917 - Prefect passes parameters by name
    limit: Count | None = None,
    until: datetime | None = None,
    processors: list[str] | None = None,
    database: str | None = None,
    drain: bool = True,  # noqa: FBT001, FBT002 - flow parameters are passed by name, from a form
    stay: Duration = timedelta(0),
    lease: Lasting | None = None,
    max_concurrency: Count | None = None,
    grace: Duration = timedelta(seconds=20),
    table: str | None = None,
) -> DispatchReport:
    """Claim due actions and dispatch each to its processor, until nothing is due.

    Any number of these may run at once, on any number of machines: no action goes to two of them. A failed action is
    in the report and in its own run's state; the flow itself fails only when it could not do its work.

    Args:
        limit: most rows that one claim takes. None here and below: from the settings (`CLAIM_DISPATCH_LIMIT`, 1000).
        until: claim only what is due by this instant, never later than the database's now.
        processors: modules to import, whose `@processor` decorators register what to do.
        database: name of a Prefect `Secret` block that holds the database's URL, or a URL without a password.
        drain: claim again until nothing is due; otherwise one claim.
        stay: keep the run alive that long, waiting for the next due action.
        lease: how long a claim lasts unless renewed. Longer than any pause of this process, shorter than you want to
            wait after a crash.
        max_concurrency: runs at a time; a run is one action, or a batch where its processor says `rows_per_run`.
        grace: when told to stop, how long to wait for what is running.
        table: name of the action table, ``schema.table`` included.

    Returns:
        The counts of this run; also as a markdown artifact, unless there was nothing to do.

    Raises:
        ConfigurationError: settings or arguments that make no sense.
        RegistrationError: a module that can't be imported, or a processor that can't be called.
        DatabaseError: the database can't be reached, or has no table for us.
    """
    settings = load_settings()
    options = _options(
        settings,
        _flow_run_id(),
        limit=limit,
        lease=lease,
        max_concurrency=max_concurrency,
        until=until,
        drain=drain,
        stay=stay,
        grace=grace,
    )
    try:
        options.check()
        modules = tuple(settings.processors if processors is None else processors)
        load_modules(modules, catalogue=settings.catalogue)
        engine, where = databases.engine_for(database_url(database)), databases.table_named(table, settings)
        label_run(engine, where)
        handed_over = runners.handed_over(
            engine,
            where,
            registry,
            database=database,
            modules=modules,
            catalogue=settings.catalogue,
            lease=options.lease,
        )
        return _run(engine, where, settings, options, handed_over)
    except ClaimDispatchError as error:
        get_run_logger().error("%s", error)
        raise


def run_claim_flow(
    *,
    processors: tuple[str, ...] | None = None,
    limit: int | None = None,
    until: datetime | None = None,
    lease: timedelta | None = None,
    stay: timedelta = timedelta(0),
    database_url: str | None = None,
    table: str | None = None,
) -> DispatchReport:
    """One claim flow, here and now, with its troubles found before the flow starts, so that each is one clear line.

    *database_url* goes into this process's environment and not into the flow's parameters, which are shown in the UI.

    Raises:
        PrefectUnavailableError: the API can't be reached, refuses us, or was too busy for a minute to create the run.
            Otherwise as `claim_dispatch`.
        FlowStoppedError: somebody has suspended, ended or deleted the run in Prefect meanwhile.
    """
    if database_url is not None:
        os.environ[f"{PREFIX}DATABASE_URL"] = database_url
    settings = load_settings()
    _options(settings, "", limit=limit, lease=lease, until=until, stay=stay).check()
    load_modules(settings.processors if processors is None else processors, catalogue=settings.catalogue)
    engine, where = databases.engine_for(None), databases.table_named(table, settings)
    _check_version(engine, where)
    require_api()
    modules = None if processors is None else list(processors)
    given = {"limit": limit, "until": until, "processors": modules, "lease": lease, "stay": stay, "table": table}
    parameters = get_call_parameters(claim_dispatch.fn, (), given)
    try:
        report = run_flow(claim_dispatch, create_flow_run(claim_dispatch, parameters), parameters)
    except (Abort, Pause) as stopped:  # of no kind that a command line would tell in one line
        raise FlowStoppedError(str(stopped) or "this flow run was suspended in Prefect") from None
    return cast("DispatchReport", report)


def _options(
    settings: Settings,
    claimed_by: str,
    *,
    limit: int | None = None,
    lease: timedelta | None = None,
    max_concurrency: int | None = None,
    **given: Any,
) -> LoopOptions:
    """What is *given*, and the *settings* for what is not."""
    return LoopOptions(
        limit=settings.limit if limit is None else limit,
        lease=timedelta(seconds=settings.lease_seconds) if lease is None else lease,
        concurrency=settings.max_concurrency if max_concurrency is None else max_concurrency,
        claimed_by=claimed_by,
        runs_per_second=settings.runs_per_second,
        listen_url=settings.listen_url.get_secret_value() if settings.listen_url else None,
        **given,
    )


def _run(
    engine: Engine,
    table: Table,
    settings: Settings,
    options: LoopOptions,
    handed_over: tuple[RunnerDispatcher, Pool] | None,
) -> DispatchReport:
    tally = Tally()
    keeper = Keeper(engine, table, lease=options.lease, tally=tally)
    routing = Routing(registry, settings.retry_policy)
    own_run = OwnRun()
    with heap.frozen(), shielded(), RoutingDispatcher(options.concurrency, handed_over) as dispatcher, keeper:
        loop = ClaimLoop(
            engine,
            table,
            routing,
            dispatcher,
            keeper,
            tally,
            options=options,
            before_first_claim=lambda: _check_version(engine, table),
            api=ApiWatch(),
            elsewhere=Elsewhere(engine, table, routing, tally, options=options),
            own_run=own_run,
        )
        try:
            loop.run()
        except BaseException as reason:
            # Cancelled, told to stop by a signal, or unable to go on: what has not begun goes back at once.
            get_run_logger().warning("stopping early (%s)", type(reason).__name__)
            is_done = False
            try:
                is_done = loop.stop()
            finally:  # a second Ctrl-C ends the grace period
                if not is_done:
                    dispatcher.abandon()
            raise
    report = tally.report()
    _publish(report)
    return own_run.concluded(report)


def _check_version(engine: Engine, table: Table) -> None:
    with engines.translated(), engine.connect() as connection:
        check_version(connection, table)


def _publish(report: DispatchReport) -> None:
    get_run_logger().info("%s", report.summary())
    if not report.is_empty:
        arguments: dict[str, Any] = {"key": ARTIFACT_KEY, "markdown": report.as_markdown()}
        create_markdown_artifact(**arguments)


def _flow_run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else "outside a flow run"
