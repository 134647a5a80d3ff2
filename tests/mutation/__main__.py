"""``python -m tests.mutation [--only TEXT] [--survivors] [--trust-list] [--workers W] [--notes FILE]``, see ``--help``.

Exit code 1 when less than 90 % are killed, or when a mutant survives that is not in ``survivors.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.kit import keeping
from tests.mutation.campaign import MUTATED, Verdict, all_mutants, prepare, run
from tests.mutation.mutating import Mutant

LISTED = Path(__file__).with_name("survivors.toml")
WANTED = 0.9
MEMORY = "/dev/shm"


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign, print it, and say whether it is good enough."""
    asked = _parsed(arguments)
    known = listed()
    chosen = _chosen(all_mutants(), asked)
    if asked.survivors:
        chosen = [mutant for mutant in chosen if mutant.name in known]
    if asked.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    began_at = time.monotonic()
    if os.access(MEMORY, os.W_OK):
        os.environ.setdefault("TMPDIR", MEMORY)  # no database has to survive anything here
    end_run = keeping.begin_run()  # its keeper ends the servers and every process of the run
    verdicts = _noted(asked.notes, chosen)
    if asked.trust_list:
        noted = {verdict.mutant.name for verdict in verdicts}
        trusted = [mutant for mutant in chosen if mutant.name in known and mutant.name not in noted]
        verdicts += [Verdict(mutant=mutant, fate="survived", by="", seconds=0.0) for mutant in trusted]
    decided = {verdict.mutant.name for verdict in verdicts}
    try:
        prepare()
        for verdict in run([mutant for mutant in chosen if mutant.name not in decided], workers=asked.workers):
            verdicts.append(verdict)
            _note(asked.notes, verdict)
            if len(verdicts) % 50 == 0:
                print(f"{len(verdicts)} of {len(chosen)}", flush=True)
            if verdict.fate != "killed":
                print(f"{verdict.fate} {verdict.by}: {verdict.mutant.name}", flush=True)
    finally:
        end_run()
    _print(verdicts, known)
    print(f"{len(verdicts)} mutants in {(time.monotonic() - began_at) / 60:.0f} minutes")
    return 0 if is_good(verdicts, known) else 1


def listed() -> dict[str, str]:
    """The survivors that are known, each with the class that gives the reason."""
    document = tomllib.loads(LISTED.read_text(encoding="utf-8"))
    return {entry["mutant"]: entry["kind"] for entry in document["survivor"]}


def is_good(verdicts: Iterable[Verdict], known: Iterable[str]) -> bool:
    """Whether enough were killed and no survivor is new."""
    fates = Counter(verdict.fate for verdict in verdicts)
    new = {verdict.mutant.name for verdict in verdicts if verdict.fate != "killed"} - set(known)
    return not new and not fates["broken"] and fates["killed"] >= WANTED * fates.total()


def _print(verdicts: list[Verdict], known: dict[str, str]) -> None:
    print(f"{'module':<28}{'mutants':>8}{'killed':>8}{'listed':>8}{'new':>6}")
    for file in (*MUTATED, "all"):
        of_file = [verdict for verdict in verdicts if file in (verdict.mutant.file, "all")]
        alive = [verdict.mutant.name for verdict in of_file if verdict.fate != "killed"]
        expected = sum(name in known for name in alive)
        killed = len(of_file) - len(alive)
        print(f"{file:<28}{len(of_file):>8}{killed:>8}{expected:>8}{len(alive) - expected:>6}")
    fates = {verdict.mutant.name: verdict.fate for verdict in verdicts}
    for name, fate in fates.items():
        if fate != "killed" and name not in known:
            print(f"not listed: {name}")
        if fate == "killed" and name in known:
            print(f"listed, and killed: {name}")
    if verdicts:
        print(f"killed: {100 * sum(fate == 'killed' for fate in fates.values()) / len(fates):.1f} %")


def _chosen(mutants: list[Mutant], asked: Any) -> list[Mutant]:
    chosen = [mutant for mutant in mutants if asked.only in mutant.name]
    if asked.sample is not None and asked.sample < len(chosen):
        kept = set(random.Random(asked.seed).sample(range(len(chosen)), asked.sample))
        chosen = [mutant for place, mutant in enumerate(chosen) if place in kept]
    return chosen


def _noted(notes: Path | None, chosen: Iterable[Mutant]) -> list[Verdict]:
    """What an earlier run, ended in its middle, has found out already."""
    if notes is None or not notes.exists():
        return []
    by_name = {mutant.name: mutant for mutant in chosen}
    found = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    return [Verdict(mutant=by_name[one.pop("mutant")], **one) for one in found if one["mutant"] in by_name]


def _note(notes: Path | None, verdict: Verdict) -> None:
    if notes is None:
        return
    found = {
        "mutant": verdict.mutant.name,
        "fate": verdict.fate,
        "by": verdict.by,
        "seconds": round(verdict.seconds, 1),
    }
    with notes.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found, ensure_ascii=False) + "\n")


def _parsed(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name holds this text")
    parser.add_argument("--survivors", action="store_true", help="those that are listed as survivors")
    parser.add_argument("--trust-list", action="store_true", help="take what is listed for a survivor, without asking")
    parser.add_argument("--sample", type=int, metavar="N", help="that many of them, by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the names, run nothing")
    parser.add_argument(
        "--notes", type=Path, metavar="FILE", help="a file for the verdicts; those in it are not asked again"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
