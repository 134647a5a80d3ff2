"""The suite's own promises: its two parts are all of it, and what a test leaves behind is that test's failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.processes import Child, Processes

INNER = """
import pytest, sqlite3, subprocess, sys, threading

kept = []

@pytest.mark.parametrize("case", ["one", pytest.param("many", marks=pytest.mark.exhaustive)])
def test_kind(case): ...

def test_older_sql(database_url): ...

def test_connection(tmp_path):
    kept.append(sqlite3.connect(tmp_path / "left.db"))
    kept[-1].execute("CREATE TABLE t (n integer)")

def test_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="left").start()

def test_clean(): ...
"""


@pytest.fixture
def inner_run(children: Processes, tmp_path: Path) -> Callable[..., Child]:
    """Run pytest on the inner tests, to its end."""
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nmarkers = exhaustive\n")

    def start(*options: str, **env: str) -> Child:
        outside = {name: None for name in os.environ if name.startswith(("PYTEST_", "COV_", "TEST_KIT_"))}
        run = children.python(
            *("-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini")),
            *("--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "inner"), *options, str(tmp_path)),
            env={**outside, **env},
        )
        run.wait(120)
        return run

    return start


def collected(run: Child) -> set[str]:
    """The names of what was chosen."""
    return {line.partition("::")[2] for line in run.output.splitlines() if "::" in line}


def test_two_parts_of_the_suite_are_all_of_it(inner_run: Callable[..., Child]) -> None:
    """What neither command ran would be run by nobody."""
    look = ("--collect-only", "-q")
    whole, quick, rest = inner_run(*look), inner_run(*look, "--only", "quick"), inner_run(*look, "--only", "rest")

    assert collected(rest) == {"test_kind[many]"}
    assert collected(quick) | collected(rest) == collected(whole)
    assert not collected(quick) & collected(rest)


def test_what_a_test_leaves_behind_is_its_own_failure(inner_run: Callable[..., Child]) -> None:
    """A connection that is missed three tests later is looked for in the wrong place; each is told with its test."""
    run = inner_run("-k", "connection or child or thread or clean", "-p", "no:randomly", "-q")

    assert "left.db" in run.output.partition("test_connection")[2]
    assert "a child process" in run.output
    assert "a thread: left" in run.output
    assert "4 passed, 4 deselected, 3 errors" in run.output, run.told


def test_failed_test_is_told_with_how_to_run_it_alone(inner_run: Callable[..., Child]) -> None:
    """Whoever reads CI's output must not have to work out the name."""
    run = inner_run("-k", "thread", "-q", "-p", "randomly", "-p", "no:xdist")

    (line,) = [line for line in run.output.splitlines() if line.startswith("alone: ")]
    assert line.endswith("test_inner.py::test_thread")
    assert "--randomly-seed=" in line
