"""Run mutants against the tests: each in a fork of a process that has imported all but the package.

What survives the tests that are near its module meets those that are far. The databases are SQLite and the first
PostgreSQL there is, one server for all mutants.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.kit import keeping, postgres
from tests.mutation import loading
from tests.mutation.mutating import Mutant, mutants

PACKAGE = keeping.ROOT / "prefect_claim_dispatch"
MUTATED = (
    "claiming.py",
    "surveying.py",
    "limiting.py",
    "settling.py",
    "rescuing.py",
    "policies.py",
    "statements/claim.py",
    "statements/settle.py",
    "statements/rescue.py",
    "statements/begin.py",
    "statements/renew.py",
    "statements/recognise.py",
    "statements/rows.py",
)
CLAIMING = "tests/conformance/test_claiming.py"
SETTLING = "tests/conformance/test_settling.py"
RESCUING = "tests/conformance/test_rescuing.py"
SURVEY = "tests/conformance/test_survey.py"
ORDERING = "tests/conformance/test_ordering.py"
REFUSALS = "tests/conformance/test_refusals.py"
LIMITS = "tests/conformance/test_limits.py"
PAUSES = "tests/conformance/test_pauses.py"
POLICIES = "tests/unit/test_policies.py"
COUNTS = "tests/plans/test_statement_counts.py"
NEAR: dict[str, tuple[str, ...]] = {
    "claiming.py": (CLAIMING, LIMITS, SETTLING, ORDERING, REFUSALS),
    "surveying.py": (SURVEY, PAUSES),
    "limiting.py": (LIMITS,),
    "settling.py": (SETTLING, RESCUING, REFUSALS),
    "rescuing.py": (RESCUING, REFUSALS),
    "policies.py": (POLICIES, SETTLING, REFUSALS),
    "statements/claim.py": (CLAIMING, ORDERING),
    "statements/settle.py": (SETTLING, ORDERING),
    "statements/rescue.py": (RESCUING, REFUSALS),
    "statements/begin.py": (SETTLING, "tests/conformance/test_fetching.py"),
    "statements/renew.py": (SETTLING,),
    "statements/recognise.py": (SETTLING,),
    "statements/rows.py": (CLAIMING, SETTLING),
}
# Not `tests/plans/test_snapshots.py`: it fails for every change of the SQL, and so says nothing about the other tests.
FAR = (
    COUNTS,
    RESCUING,
    SETTLING,
    CLAIMING,
    SURVEY,
    ORDERING,
    REFUSALS,
    LIMITS,
    PAUSES,
    "tests/conformance/test_outstanding.py",
    "tests/faults/test_mutants.py",
    "tests/faults/test_lost_acknowledgements.py",
    "tests/conformance/test_interleavings.py",
)
OF_DECISIONS = ("tests/conformance/test_suspects.py", "tests/conformance/test_keeping.py")
OF_STATEMENTS = ("tests/plans/test_sqlite_plans.py", "tests/plans/test_plans.py")
SLOW = ("test_no_deadlock_of_many_rows_reaches_anybody",)  # it takes longer than all others of its file
IMPORTED = (
    "sqlalchemy.dialects.sqlite",
    "psycopg",
    "hypothesis.stateful",
    "alembic.command",
    "pydantic_settings",
    "prefect",
)
SECONDS = {"near": 120.0, "far": 420.0}
TEST_SECONDS = 40

Stage = Literal["near", "far"]
STAGES: tuple[Stage, ...] = ("near", "far")
Fate = Literal["killed", "survived", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant, and by which test; *broken* where the campaign itself went wrong."""

    mutant: Mutant
    fate: Fate
    by: str
    seconds: float


@dataclass(slots=True)
class _Trial:
    mutant: Mutant | None
    stage: Stage
    process: Any
    answer: Connection
    folder: Path
    began_at: float = field(default_factory=time.monotonic)


class _Witness:
    """A pytest plugin: lets the tests that killed the mutants nearby go first, and remembers the one that fails."""

    def __init__(self, first: Sequence[str]) -> None:
        self.first = {test: place for place, test in enumerate(first)}
        self.failed = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.workerinput = {}  # what xdist's workers have: the servers are another process's to start and end

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # SQLite's are quicker.
        items.sort(key=lambda item: (self.first.get(item.nodeid, len(self.first)), "postgresql" in item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"import of {report.nodeid}"


def all_mutants() -> list[Mutant]:
    """Every mutant of every module."""
    return [one for file in MUTATED for one in mutants(file, (PACKAGE / file).read_text(encoding="utf-8"))]


def prepare() -> None:
    """Start the databases, and import what every trial needs, but nothing of the package."""
    os.environ["PREFECT_HOME"] = str(keeping.run_folder() / "prefect-home")
    keeping.request(next(iter(postgres.available())))
    for name in IMPORTED:
        __import__(name)
    gc.freeze()


def run(chosen: Iterable[Mutant], *, workers: int = 1) -> Iterator[Verdict]:
    """The fate of each of *chosen*, as it is known.

    Raises:
        RuntimeError: the tests fail without a mutant.
    """
    every = {test: None for file in MUTATED for stage in STAGES for test in files_for(file, stage)}
    fate, by = _ended(_begin(None, "far", tuple(every), []))
    if fate != "survived":
        msg = f"without any mutant, {by or 'pytest'} fails; mend that first"
        raise RuntimeError(msg)
    killers: dict[str, Counter[str]] = defaultdict(Counter)
    waiting: list[tuple[Mutant, Stage]] = [(mutant, "near") for mutant in chosen]
    running: list[_Trial] = []
    spent: Counter[str] = Counter()
    while waiting or running:
        while waiting and len(running) < workers:
            mutant, stage = waiting.pop(0)
            first = [test for test, _ in killers[f"{mutant.file} {mutant.scope}"].most_common(6)]
            first += [test for test, _ in killers[mutant.file].most_common(6)]
            running.append(_begin(mutant, stage, files_for(mutant.file, stage), first))
        _wait(running)
        for trial in [trial for trial in running if _has_ended(trial)]:
            running.remove(trial)
            mutant = trial.mutant
            assert mutant
            fate, by = _ended(trial)
            spent[mutant.name] += time.monotonic() - trial.began_at  # pyright: ignore[reportArgumentType]
            if fate == "survived" and trial.stage == "near":
                waiting.append((mutant, "far"))  # last: it takes longest
                continue
            if fate == "killed" and "::" in by:
                killers[f"{mutant.file} {mutant.scope}"][by] += 1
                killers[mutant.file][by] += 1
            yield Verdict(mutant=mutant, fate=fate, by=by, seconds=spent[mutant.name])


def files_for(file: str, stage: Stage) -> tuple[str, ...]:
    """The files of tests that a mutant of *file* meets at that stage."""
    if stage == "near":
        return NEAR[file]
    others = OF_STATEMENTS if file.startswith("statements/") else OF_DECISIONS
    return tuple(test for test in (*FAR, *others) if test not in NEAR[file])


def try_one(mutant: Mutant | None, tests: Sequence[str]) -> tuple[Fate, str]:
    """The fate of one mutant, or of the package as it is, before *tests*, and the test that killed it."""
    return _ended(_begin(mutant, "near", tests, []))


def _begin(mutant: Mutant | None, stage: Stage, tests: Sequence[str], first: Sequence[str]) -> _Trial:
    context = multiprocessing.get_context("fork")
    answer, question = context.Pipe(duplex=False)
    folder = keeping.run_folder() / f"t{os.urandom(4).hex()}"
    folder.mkdir()
    process = context.Process(target=_attempt, args=(mutant, tests, first, folder, question))
    process.start()
    question.close()
    return _Trial(mutant, stage, process, answer, folder)


def _attempt(
    mutant: Mutant | None, tests: Sequence[str], first: Sequence[str], folder: Path, question: Connection
) -> None:
    """In the fork: run *tests* on *mutant* and tell what came of it."""
    os.setsid()
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(keeping.ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for them takes longer than most mutants live
    if mutant:
        loading.plant(mutant)
    witness = _Witness(first)
    others = [f"not {name}" for name in (*list(postgres.available())[1:], *SLOW)]
    code = pytest.main(
        [
            *("-q", "-x", "--tb=short", "--no-header", "-p", "pytest_timeout", "-p", "no:cacheprovider"),
            *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
            *("--basetemp", str(folder / "tmp"), "--timeout", str(TEST_SECONDS), "-k", " and ".join(others), *tests),
        ],
        plugins=[witness],
    )
    if mutant and not loading.is_loaded(mutant) and not witness.failed:
        question.send(("broken", f"pytest ended with {code!r}, and no test imported the mutant"))
    elif code == pytest.ExitCode.OK:
        question.send(("survived", ""))
    elif code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        question.send(("killed", witness.failed))
    else:
        question.send(("broken", f"pytest ended with {code!r}"))
    sys.stdout.flush()
    os._exit(0)


def _wait(running: Sequence[_Trial]) -> None:
    wait([trial.process.sentinel for trial in running], timeout=1.0)


def _has_ended(trial: _Trial) -> bool:
    return not trial.process.is_alive() or time.monotonic() - trial.began_at > SECONDS[trial.stage]


def _ended(trial: _Trial) -> tuple[Fate, str]:
    trial.process.join(max(0.0, SECONDS[trial.stage] - (time.monotonic() - trial.began_at)))
    # A mutant that never comes back, or that takes its process along, does not pass for the original.
    ended: tuple[Fate, str] = ("killed", "its time was up" if trial.process.is_alive() else "the process died")
    with suppress(EOFError):
        if trial.answer.poll():
            ended = trial.answer.recv()
    if trial.process.is_alive():
        os.killpg(trial.process.pid, signal.SIGKILL)
        trial.process.join()
    if trial.mutant is None and ended[0] != "survived":
        sys.stderr.write((trial.folder / "output").read_text(errors="replace"))
    shutil.rmtree(trial.folder, ignore_errors=True)
    return ended
