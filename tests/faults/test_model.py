"""The model of the design (docs/model): it holds, its mutants fail, and the check can tell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "model"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("spin", "cc"))), reason="needs spin and a C compiler: apt install spin gcc"
)


def check(folder: Path, *only: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(folder / "check.sh"), *only], capture_output=True, text=True, check=False, timeout=250
    )


def test_model_holds_and_every_mutant_fails() -> None:
    """The fence and the lease are what the promises rest on: with either gone, a search finds the broken promise."""
    checked = check(MODEL)

    verdicts = [line for line in checked.stdout.splitlines() if " states " in line]
    assert checked.returncode == 0, checked.stdout
    assert [(line.startswith("mutant:"), "fails" in line) for line in verdicts] == [(False, False)] * 4 + [
        (True, True)
    ] * 5


def test_broken_design_is_reported(tmp_path: Path) -> None:
    """A check that can't fail would be no check: here the model itself lets rescue ignore the lease."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    model = folder / "actions.pml"
    text = model.read_text()
    broken = text.replace("(row[r].status == claimed && row[r].lease == 0)", "(row[r].status == claimed)")
    assert broken != text
    model.write_text(broken)

    checked = check(folder, "S1 S2 S3: 2 actors, 1 row")

    assert checked.returncode == 1
    assert "expected: holds" in checked.stdout
