"""Examining: every check in turn; one that can't be made is a finding too, and the next is made all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, Table

from prefect_claim_dispatch import databases, engines, migrations, operations, settings
from prefect_claim_dispatch.diagnosing import asking, judging
from prefect_claim_dispatch.diagnosing.facts import HoldingFacts
from prefect_claim_dispatch.diagnosing.findings import Finding, failure, fine, warning
from prefect_claim_dispatch.errors import (
    ClaimDispatchError,
    DatabaseError,
    RegistrationError,
    SchemaMissingError,
    comes_with_prefect,
)

MIGRATE = "as the role that owns the schema; docs/migrations.md says what an administrator may run instead"
INSTALL = "pip install 'prefect-claim-dispatch[prefect]', or ask where the claim flow runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What is examined: the *url* of a database, a *table*, modules of *processors*, names of *deployments*.

    What lasts longer than *patience* is a finding. None: from the settings.
    """

    url: str
    table: str | None = None
    processors: tuple[str, ...] | None = None
    deployments: tuple[str, ...] = ()
    patience: timedelta = judging.PATIENCE


def examine(patient: Patient) -> list[Finding]:
    """All findings, those on the database first.

    Raises:
        ConfigurationError: settings that make no sense.
    """
    imported, is_routable = _examine_processors(patient.processors)
    return [
        *_examine_database(patient, is_routable),
        *imported,
        *_examine_prefect(patient, are_known=is_routable is not None),
    ]


def _examine_processors(modules: Sequence[str] | None) -> tuple[list[Finding], Callable[[str], bool] | None]:
    """The finding, and who says whether a type has a processor; nobody, where that can't be known."""
    configured = settings.load()
    named = configured.processors if modules is None else tuple(modules)
    if not named:
        what = "no modules are named, so which types have a processor is not known here"
        remedy = "name them: --processors MODULE, or CLAIM_DISPATCH_PROCESSORS"
        return [warning("processors", what, remedy)], None
    try:
        from prefect_claim_dispatch.processors import load_modules, registry  # noqa: PLC0415 - Prefect, if it is there

        load_modules(named, catalogue=configured.catalogue)
    except ModuleNotFoundError as error:
        if not comes_with_prefect(error):
            raise
        return [warning("processors", "not imported: Prefect is not installed here", INSTALL)], None
    except RegistrationError as error:
        return [failure("processors", str(error), "a claim flow with these modules claims nothing: mend them")], None
    types = ", ".join(registry.types) or "none"
    return [fine("processors", f"{', '.join(named)}: {types}")], lambda type_: registry.match(type_) is not None


def _examine_database(patient: Patient, is_routable: Callable[[str], bool] | None) -> list[Finding]:
    table = databases.table_named(patient.table)
    try:
        engine = databases.engine_for(patient.url)
        file = asking.database_file(engine)
        if file is not None and not file.exists():
            return [failure("database", f"there is no file {file}", "claim-dispatch db upgrade makes it")]
        server = judging.judge_server(asking.ask_server(engine))
    except ClaimDispatchError as error:
        return [failure("database", str(error), "nothing works without it: check address, network and password")]
    return [*server, *_examine_table(engine, table, patient, is_routable)]


def _examine_table(
    engine: Engine, table: Table, patient: Patient, is_routable: Callable[[str], bool] | None
) -> list[Finding]:
    if _publishes_only(engine, table):
        return judging.judge_publisher()
    schema = _examine_schema(engine, table)
    if schema.remedy:
        return [schema]
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("grants", lambda: _examine_rights(engine, table)),
        ("indexes", lambda: judging.judge_indexes(asking.ask_indexes(engine, table), _index_names(table))),
        ("wake-up", lambda: judging.judge_wake_up(is_there=asking.ask_wake_up(engine, table))),
        ("vacuum", lambda: _examine_vacuum(engine, table, patient.patience)),
        ("pauses", lambda: judging.judge_pauses(asking.ask_pauses(engine, patient.table))),
        ("rows", lambda: _examine_rows(engine, table, patient, is_routable)),
        ("rows", lambda: _examine_blocking(engine, table, patient, is_routable)),
    ]
    return [schema, *(finding for check in checks for finding in _guarded(*check))]


def _guarded(check: str, examine_it: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return examine_it()
    except DatabaseError as error:
        return [failure(check, f"can't be checked: {error}", "mend that first, and ask again")]


def _examine_schema(engine: Engine, table: Table) -> Finding:
    try:
        with engines.translated(), engine.connect() as connection:
            migrations.check_version(connection, table)
    except SchemaMissingError as error:
        return failure("schema", str(error), MIGRATE)
    except DatabaseError as error:
        return failure("schema", str(error), "upgrade the package that is older")
    return fine("schema", f"table {table.fullname} is as this package ({migrations.newest_revision()}) wants it")


def _examine_rights(engine: Engine, table: Table) -> list[Finding]:
    rights = asking.ask_rights(engine, table)
    return [] if rights is None else judging.judge_rights(rights, table.c.keys())


def _publishes_only(engine: Engine, table: Table) -> bool:
    try:
        rights = asking.ask_rights(engine, table)
    except DatabaseError:
        return False  # the check of the grants tells it
    return rights is not None and judging.publishes_only(rights)


def _examine_vacuum(engine: Engine, table: Table, patience: timedelta) -> list[Finding]:
    return judging.judge_vacuum(asking.ask_pins(engine), asking.ask_tuples(engine, table), patience)


def _examine_rows(
    engine: Engine, table: Table, patient: Patient, is_routable: Callable[[str], bool] | None
) -> list[Finding]:
    counts = operations.counts(engine, table=patient.table)
    claims, pauses = asking.ask_claims(engine, table), asking.ask_pauses(engine, patient.table)
    return judging.judge_rows(counts, claims, is_routable, patient.patience, pauses or ())


def _examine_blocking(
    engine: Engine, table: Table, patient: Patient, is_routable: Callable[[str], bool] | None
) -> list[Finding]:
    paused = [pause.type for pause in asking.ask_pauses(engine, patient.table) or ()]
    return judging.judge_blocking(asking.ask_blocking(engine, table), is_routable, patient.patience, paused)


def _index_names(table: Table) -> list[str]:
    return [str(index.name) for index in table.indexes]


def _ask_holding(patient: Patient) -> HoldingFacts | None:
    """What the table says of its claims; None where it can't be asked, which `_examine_database` has told."""
    try:
        engine = databases.engine_for(patient.url)
        file = asking.database_file(engine)
        if file is not None and not file.exists():
            return None
        return asking.ask_holding(engine, databases.table_named(patient.table))
    except ClaimDispatchError:
        return None


def _examine_prefect(patient: Patient, *, are_known: bool) -> list[Finding]:
    """The findings on Prefect; on what processors want of it, where *are_known*."""
    try:
        from prefect_claim_dispatch.diagnosing.prefects import (  # noqa: PLC0415 - if it is installed
            examine_deployments,
            examine_limits,
            examine_prefect,
        )
        from prefect_claim_dispatch.registry import registry  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        if not comes_with_prefect(error):
            raise
        return [warning("prefect", "Prefect is not installed here, so nothing is known of API and schedule", INSTALL)]
    found = examine_prefect(patient.deployments, _ask_holding(patient), patient.patience)
    if are_known:
        found += [*examine_deployments(registry), *examine_limits(registry.concurrency_limits)]
    return found
