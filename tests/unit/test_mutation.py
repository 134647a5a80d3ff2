"""The campaign of `tests/mutation` can see: what is broken is killed, what is not survives, and no file is changed."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from tests.kit import keeping
from tests.mutation.__main__ import LISTED, is_good, listed
from tests.mutation.campaign import MUTATED, PACKAGE, Fate, Verdict, all_mutants, files_for
from tests.mutation.mutating import Mutant, mutants

FENCE = "statements/rows.py fence: without table.c.claim_count == rows.c.claim_count in and_("
STALE = "tests/conformance/test_settling.py::test_stale_claim_cannot_settle[sqlite]"
# A process of its own, in which nothing of the package is imported yet.
TRY = """
import json, sys
from dataclasses import replace
from tests.kit import keeping
from tests.mutation.campaign import all_mutants, try_one

fence = next(one for one in all_mutants() if one.name.startswith(sys.argv[1]))
same = replace(fence, number=None)
end_run = keeping.begin_run()
try:
    print(json.dumps([try_one(one, [sys.argv[2]]) for one in (fence, same)]))
finally:
    end_run()
"""


def changes(source: str) -> list[str]:
    return [mutant.change for mutant in mutants("x.py", source)]


def test_fence_that_is_dropped_is_killed_and_what_is_not_changed_survives() -> None:
    """Both verdicts, by the very test that a reader would name."""
    before = {file: file.read_bytes() for file in PACKAGE.rglob("*.py")}

    tried = subprocess.run(
        [sys.executable, "-c", TRY, FENCE, STALE], cwd=keeping.ROOT, capture_output=True, text=True, check=True
    )

    killed, survived = json.loads(tried.stdout.splitlines()[-1])
    assert killed == ["killed", STALE]
    assert survived == ["survived", ""]
    assert {file: file.read_bytes() for file in PACKAGE.rglob("*.py")} == before


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["a < b → a <= b", "a < b → a >= b"]),
        ("x = a and b", ["a and b → a or b", "without a in a and b", "without b in a and b"]),
        ("x = where(a, b)", ["without a in where(a, b)", "without b in where(a, b)"]),
        ("x = values(status=s)", ["without status=s in values(status=s)"]),
        ("x = ActionStatus.DEAD", ["ActionStatus.DEAD → ActionStatus.CANCELLED in x = ActionStatus.DEAD"]),
        ("def f():\n    return g(x)", ["return g(x) → return None"]),
        ("if a:\n    b()", ["if a → if True", "if a → if False", "delete b()"]),
    ],
)
def test_mistakes_that_people_make(source: str, expected: list[str]) -> None:
    """One for each kind; an operator that finds nothing any more would only raise the score."""
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""Words."""',
        "__all__ = ['a']",
        "logger.debug('x', 1)",
        "msg = f'{1} or {2}'",
        "x: list[1]",
        "@cache(maxsize=1)\ndef f(): ...",
        "x = column.label('a')",
    ],
)
def test_what_no_behaviour_depends_on_is_left_alone(source: str) -> None:
    """A survivor that nobody could kill hides one that somebody should."""
    assert changes(source) == []


def test_mutants_compile_and_have_names_of_their_own() -> None:
    """What does not compile is killed by whatever test is there; survivors are listed by name."""
    found = all_mutants()

    for mutant in found[::10]:
        compile(mutant.tree(), mutant.file, "exec")
    assert len({mutant.name for mutant in found}) == len(found) > 600


def test_listed_survivors_exist_and_have_reasons() -> None:
    """A list that outlives its code excuses nothing."""
    document = tomllib.loads(LISTED.read_text(encoding="utf-8"))
    names = {mutant.name for mutant in all_mutants()}

    assert [entry["mutant"] for entry in document["survivor"] if entry["mutant"] not in names] == []
    assert len(listed()) == len(document["survivor"])
    for entry in document["survivor"]:
        assert entry["kind"] in document["kinds"]
        assert entry["reason"]


def test_tests_of_the_campaign_exist() -> None:
    """A whole run is refused for one name that is not there, and each mutant would count as broken."""
    assert all(
        (keeping.ROOT / file).is_file()
        for file in sum((files_for(file, stage) for file in MUTATED for stage in ("near", "far")), ())
    )


def test_new_survivor_spoils_the_campaign() -> None:
    """Nine of ten may be killed and the tenth still be the fence."""
    killed, alive, broken = (verdict(number, fate) for number, fate in enumerate(("killed", "survived", "broken")))

    assert is_good([killed] * 9 + [alive], [alive.mutant.name])
    assert not is_good([killed] * 9 + [alive], [])
    assert not is_good([killed] * 8 + [alive] * 2, [alive.mutant.name])
    assert not is_good([killed] * 9 + [broken], [broken.mutant.name])


def verdict(number: int, fate: Fate) -> Verdict:
    mutant = Mutant(file="x.py", scope="f", change=str(number), source="", number=None)
    return Verdict(mutant=mutant, fate=fate, by="", seconds=0.0)
