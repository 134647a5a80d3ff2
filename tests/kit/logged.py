"""What runs have logged, and whose frames their tracebacks show."""

from __future__ import annotations

from collections import defaultdict

from tests.kit.prefect_server import PrefectServer
from tests.kit.waiting import wait_until


def functions_in(text: str) -> list[str]:
    """The functions that a traceback names, in their order."""
    return [line.rpartition(" in ")[2] for line in text.splitlines() if line.startswith('  File "')]


def frames_of(lines: list[str], beginning: str) -> list[str]:
    """The functions in the traceback of the one line that begins so."""
    (line,) = [line for line in lines if line.startswith(beginning)]
    return functions_in(line)


def logs_of(server: PrefectServer, ids: dict[str, str]) -> dict[str, list[str]]:
    """What is logged in each of the runs *ids*, by name; once their last lines have come."""

    def found() -> dict[str, list[str]] | None:
        logged: dict[str, list[str]] = defaultdict(list)
        for kind in ("task_run_id", "flow_run_id"):
            wanted = {"logs": {kind: {"any_": sorted(ids.values())}}, "sort": "TIMESTAMP_ASC"}
            for offset in (0, 200, 400):
                for log in server.post("logs/filter", {**wanted, "limit": 200, "offset": offset}):
                    logged[log[kind]].append(log["message"])
        are_over = all(any("Finished in state" in line for line in logged[id_]) for id_ in ids.values())
        return {name: logged[id_] for name, id_ in ids.items()} if are_over else None

    logs = wait_until(found, description="the runs' logs are in the API", timeout=90)
    assert logs is not None
    return logs
