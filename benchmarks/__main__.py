"""All benchmarks, one after another: one table of ratios and goals, and the drawing and the table of costs in docs/.

``make bench``, or ``python benchmarks``. Each benchmark is a program of its own in this folder, and says at its head
what it measures and what would be unfair to read into it; a new one is found by its `main`. ``--quick`` runs each with
as few rows as it can, to see that they work: its figures mean nothing, and are not written to docs/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kit
import metering
import reporting

FOLDER = Path(__file__).parent
QUICK = ("--rounds", "1", "--scale", "0.001")


def names() -> list[str]:
    """The benchmarks there are."""
    files = sorted(FOLDER.glob("*.py"))
    others = ("__main__", "peer_")
    return [file.stem for file in files if not file.stem.startswith(others) and "\ndef main()" in file.read_text()]


@contextmanager
def shared_server(*, is_wanted: bool) -> Generator[dict[str, str]]:
    """The environment of the benchmarks: in a quick run they share a Prefect server, which takes seconds to start."""
    if not is_wanted or metering.SHARED in os.environ:
        yield dict(os.environ)
        return
    before = dict(os.environ)
    with metering.prefect() as server:
        yield before | {metering.SHARED: server.shared}


def run(name: str, arguments: Sequence[str], folder: Path, env: dict[str, str]) -> dict[str, Any] | None:
    """What one benchmark wrote; None when it failed, which is told."""
    file = folder / f"{name}.json"
    began = time.perf_counter()
    program = str(FOLDER / f"{name}.py")
    ended = subprocess.run([sys.executable, program, *arguments, "--json", str(file)], env=env, check=False)
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    if ended.returncode or not file.exists():
        print(f"{name} failed with exit code {ended.returncode}", file=sys.stderr)
        return None
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def main() -> None:
    """Run them, tell, write."""
    parser = kit.parser(__doc__)
    parser.set_defaults(rounds=None, scale=None)
    parser.add_argument("--quick", action="store_true", help="as few rows as possible: does it run")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), help="these benchmarks")
    parser.add_argument("--from-json", type=Path, help="measure nothing: tell and write what --json has written")
    parser.add_argument("--docs", type=Path, help="where to write; docs/ unless the run is quick or partial")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a goal is missed")
    options = parser.parse_args()
    documents = json.loads(options.from_json.read_text()) if options.from_json else measured(options)
    if options.json:
        options.json.write_text(json.dumps(documents, indent=2) + "\n")
    reporting.table(documents)
    is_whole = not options.quick and set(options.only) == set(names())
    folder = options.docs or (kit.ROOT / "docs" if is_whole else None)
    if folder:
        reporting.write_docs(documents, folder)
    missed = reporting.missed(documents)
    print(*(missed or ["no goal was missed"]), sep="\n")
    if len(documents) < len(options.only) and not options.from_json:
        raise SystemExit(1)
    if missed and options.strict:
        raise SystemExit(1)


def measured(options: Any) -> list[dict[str, Any]]:
    """The documents of those that succeeded."""
    arguments = list(QUICK) if options.quick else []
    for option in ("rounds", "scale", "peer_python"):
        value = getattr(options, option)
        if value is not None:
            arguments += [f"--{option.replace('_', '-')}", str(value)]
    with (
        tempfile.TemporaryDirectory(prefix="pcd-bench-") as folder,
        shared_server(is_wanted=options.quick) as env,
    ):
        documents = [run(name, arguments, Path(folder), env) for name in options.only]
    return [document for document in documents if document is not None]


if __name__ == "__main__":
    main()
