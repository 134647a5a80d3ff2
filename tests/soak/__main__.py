"""``python -m tests.soak --minutes M --seed S [--database sqlite|postgresql]``, see ``--help``; 1 on any violation."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.kit import keeping
from tests.kit.prefect_server import PrefectServer
from tests.soak.scenario import CLAIMANTS, Scenario
from tests.soak.soaking import soak

FOREIGN = ("CLAIM_DISPATCH_", "PREFECT_")  # a developer's own settings must not decide what is soaked


def main(arguments: list[str] | None = None) -> int:
    """Soak, print the table, and answer the exit code."""
    asked = _parsed(arguments)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)
    end_run = keeping.begin_run()  # its keeper ends every process of the run, also when this one is killed
    try:
        api = PrefectServer(**keeping.request("prefect")).env if asked.flows else {}
        scenario = Scenario(
            database=asked.database,
            seconds=asked.minutes * 60,
            seed=asked.seed,
            claimants=asked.claimants or CLAIMANTS[asked.database],
            flows=asked.flows,
            lease=asked.lease,
            pause=asked.pause,
            rate=asked.rate,
        )
        findings = soak(scenario, keeping.run_folder() / "soak", api)
    finally:
        end_run()
    print(f"{asked.database}, {asked.minutes:g} minutes, seed {asked.seed}")
    print(findings.table)
    if asked.json:
        asked.json.write_text(json.dumps(findings.as_dict, indent=2))
    return 1 if findings.violations else 0


def _parsed(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=list(CLAIMANTS), default="postgresql")
    parser.add_argument("--claimants", type=int, help="processes that run the claim loop without Prefect")
    parser.add_argument("--flows", type=int, default=1, help="claim flows beside them, on a Prefect server")
    parser.add_argument("--lease", type=float, help="seconds; a machine that is busy otherwise needs longer ones")
    parser.add_argument("--pause", type=float, help="seconds from one fault to the next, on average")
    parser.add_argument("--rate", type=float, help="rows published a second")
    parser.add_argument("--json", type=Path, help="a file for the findings")
    return parser.parse_args(arguments)


def _interrupt(_signum: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
