"""The example of docs/testing.md, as somebody would copy it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit.documents import blocks


def test_example_passes_as_it_is_written(empty_database_url: str, tmp_path: Path) -> None:
    """An example that fails costs its reader an afternoon, and us the reader."""
    ((name, example),) = blocks("docs/testing.md").items()
    (tmp_path / name).write_text(example, encoding="utf-8")
    number = example.count("\ndef test_")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        env=os.environ | {"TEST_DATABASE_URL": empty_database_url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert number == 4
    assert f"{number} passed" in done.stdout
