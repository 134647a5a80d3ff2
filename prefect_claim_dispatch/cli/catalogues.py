"""``claim-dispatch types``: the catalogue of action types, for people and for publishers in other languages."""

from __future__ import annotations

from typing import Any, Final

from cyclopts import App

from prefect_claim_dispatch import databases, settings
from prefect_claim_dispatch.catalogue import Entry, catalogue, import_catalogue
from prefect_claim_dispatch.cli.options import Common, find_modules_here
from prefect_claim_dispatch.cli.output import output_to_stderr, print_json, print_table, say

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
COLUMNS: Final = ("type", "class", "required", "optional")


def register(app: App) -> None:
    """Add the commands of this module to *app*."""
    app.command(types)


def types(
    *names: str,
    catalogue: tuple[str, ...] | None = None,
    common: Common | None = None,
) -> None:
    """Show the action types of the catalogue and what their payloads must have; with --json, their JSON Schemas.

    Args:
        names: Types to show; all unless given.
        catalogue: A module of action types; may be given more than once. CLAIM_DISPATCH_CATALOGUE unless given.
        common: Database, table, and how to answer.
    """
    common = common or Common()
    entries = load_catalogue(catalogue, names)
    schemas = {entry.type: entry.json_schema() for entry in entries}
    if common.json:
        described = {entry.type: _as_dict(entry, schemas[entry.type]) for entry in entries}
        print_json({"table": databases.table_named(common.table).fullname, "types": described})
    elif entries:
        print_table("", COLUMNS, [(entry.type, entry.class_name, *_fields(schemas[entry.type])) for entry in entries])
    else:
        say("no types; give --catalogue MODULE or set CLAIM_DISPATCH_CATALOGUE")


def load_catalogue(modules: tuple[str, ...] | None, names: tuple[str, ...] = ()) -> list[Entry]:
    """The entries of *names*, all when there are none, sorted, once the *modules* are imported; None: the settings'.

    Raises:
        RegistrationError: a module can't be imported, or something in it can't be registered.
        ConfigurationError: a name is not in the catalogue.
    """
    find_modules_here()
    with output_to_stderr():
        import_catalogue(settings.load().catalogue if modules is None else modules)
    return [catalogue[name] for name in sorted({*names} or catalogue.types)]


def _as_dict(entry: Entry, schema: dict[str, Any]) -> dict[str, Any]:
    return {"class": entry.class_name, "schema": {"$schema": DIALECT, **schema}}


def _fields(schema: dict[str, Any]) -> tuple[str, str]:
    """The names of required and of optional members. A class that refers to itself stands among the definitions."""
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    optional = [name for name in schema.get("properties", {}) if name not in required]
    return ", ".join(required), ", ".join(optional)
