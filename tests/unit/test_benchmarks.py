"""The benchmarks run, and tell what was asked for; how fast anything is, no test says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.kit.prefect_server import PrefectServer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
GUIDE = ROOT / "docs" / "choosing-a-lane.md"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a file of the benchmarks' folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("kit", "plotting", "reporting"):
        sys.modules.pop(name, None)


@pytest.mark.exhaustive
def test_quick_run_tells_each_ratio_and_goal(prefect_server: PrefectServer, tmp_path: Path) -> None:
    """A benchmark that nobody can run, or that lost a side, would be found on the day its figures are wanted."""
    wanted = ("flood", "rules", "scale")
    shared = json.dumps({"api_url": prefect_server.api_url, "home": prefect_server.home})
    written = tmp_path / "all.json"

    ended = subprocess.run(
        [sys.executable, str(FOLDER), "--quick", "--json", str(written), "--only", *wanted],
        env={**os.environ, "CLAIM_DISPATCH_BENCH_PREFECT": shared},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    documents = {document["benchmark"]: document for document in json.loads(written.read_text())}
    assert list(documents) == list(wanted)
    assert [line["figure"] for line in documents["flood"]["lines"]] == ["seconds until quiet"]
    assert {line["figure"] for line in documents["scale"]["lines"]} == {"large/small"}
    assert [result["statistics"] for result in documents["scale"]["results"]] == ["stale", "none", "fresh"]
    assert all(line["goal"] is None for line in documents["rules"]["lines"])
    assert all(name in ended.stdout for name in wanted)


def test_costs_and_drawing_are_written_into_the_docs(module: Any, tmp_path: Path) -> None:
    """The one place of these figures; what stands around them is left alone."""
    guide = tmp_path / GUIDE.name
    guide.write_text(GUIDE.read_text())
    lane = {"lane": "task", "rows": 5, "inside": 2.5, "client CPU": 2.0, "server CPU": 25.0, "requests": 0.01}
    line = {"what": "task", "figure": "ours/map", "sides": {}, "value": 0.5, "goal": "<= 1.05", "reached": True}
    documents = [{"benchmark": "lanes", "results": [lane], "lines": [line]}]

    module("reporting").write_docs(documents, tmp_path)
    module("reporting").write_docs(documents, tmp_path)

    text = guide.read_text()
    assert text.count("| task | 2.5 | 2 | 25 | 0.01 |") == 1
    assert text.startswith("# Choosing a lane")
    assert "## Bad ideas" in text
    assert len(ET.fromstring((tmp_path / "benchmarks.svg").read_text()).findall(".//{*}rect")) == 3


def test_every_benchmark_is_found_and_says_what_would_be_unfair() -> None:
    """A ratio without its caveat is quoted without it."""
    listed = subprocess.run(
        [sys.executable, str(FOLDER), "--only", "nothing"], capture_output=True, text=True, check=False
    ).stderr
    programs = [file for file in FOLDER.glob("*.py") if "\ndef main()" in file.read_text() and file.stem[:2] != "__"]

    assert len(programs) >= 12
    for program in programs:
        if program.stem.startswith("peer_"):
            continue
        assert program.stem in listed
        assert "nfair" in program.read_text().split('"""')[1], f"{program.name}: what would be unfair?"


def test_lines_hold_ratios_and_goals_alone(module: Any) -> None:
    """Counts and sizes are not compared with anything."""
    kit = module("kit")
    results = [{"batch": 10, "rows": 5, "ours": 4.0, "bare": 2.0, "ours/bare": 2.0, "lag": None}]
    goals = [kit.Goal(figure="ours/bare", at_least=3, of={"batch": 10}), kit.Goal(figure="lag", at_most=1)]

    first, second = kit.lines(results, ["batch"], goals)

    assert first["what"] == "batch 10"
    assert first["sides"] == {"ours": 4.0, "bare": 2.0}
    assert (first["goal"], first["reached"]) == (">= 3", False)
    assert (second["figure"], second["reached"]) == ("lag", None)


@pytest.mark.parametrize(
    ("bounds", "good", "bad"), [({"at_least": 0.9}, 0.9, 0.89), ({"at_most": 1.5}, 1.5, 1.51)], ids=["least", "most"]
)
def test_goal_is_reached_at_its_bound(module: Any, bounds: dict[str, float], good: float, bad: float) -> None:
    """A goal told the wrong way round would be praise for the worst."""
    goal = module("kit").Goal(figure="x", **bounds)

    assert goal.is_reached(good)
    assert not goal.is_reached(bad)


def test_drawing_is_well_formed_whatever_the_labels_say(module: Any) -> None:
    """Names of figures have `<` and `&` in them, and a value may be 0."""
    plotting = module("plotting")
    bars = [plotting.Bar(label="a < b & c", value=2.0), plotting.Bar(label="none", value=0.0)]

    drawn = plotting.drawing([plotting.Panel(title="x > y", bars=bars, mark=1.0), plotting.Panel(title="", bars=[])])

    assert len(ET.fromstring(drawn).findall(".//{*}rect")) == 2


def test_guide_says_nothing_that_was_not_measured() -> None:
    """Its table of costs is written by the benchmarks, between two marks, and its image with it."""
    text = GUIDE.read_text()

    assert text.count("<!-- costs: written by make bench -->") == text.count("<!-- end of costs -->") == 1
