"""The public API under a strict type checker: what is meant passes, and every marked mistake is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MARK = re.compile(r"# error: (?P<rules>\w+(?:, \w+)*)$")
FILES = sorted(file.name for file in FOLDER.glob("*.py") if file.name not in {"__init__.py", Path(__file__).name})

Findings = dict[int, set[str]]


def expected(file: Path) -> Findings:
    marked = ((number, MARK.search(line)) for number, line in enumerate(file.read_text().splitlines(), 1))
    return {number: set(mark["rules"].split(", ")) for number, mark in marked if mark}


def found(file: Path) -> Findings:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    run = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    findings: Findings = {}
    for finding in json.loads(run.stdout)["generalDiagnostics"]:
        findings.setdefault(finding["range"]["start"]["line"] + 1, set()).add(finding["rule"])
    return findings


@pytest.mark.parametrize("name", FILES)
def test_type_checker_finds_the_marked_mistakes_and_no_others(name: str) -> None:
    """A wrong argument of a setter must be red in the editor, long before it is refused at run time."""
    assert found(FOLDER / name) == expected(FOLDER / name)
