"""The example of docs/testing.md, as somebody would copy it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_example_passes_as_it_is_written(empty_database_url: str, tmp_path: Path) -> None:
    """An example that fails costs its reader an afternoon, and us the reader."""
    (example,) = EXAMPLE.findall(DOCUMENT.read_text(encoding="utf-8"))
    (tmp_path / "test_example.py").write_text(example, encoding="utf-8")
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
