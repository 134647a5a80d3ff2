"""Where the dispatcher contract is performed in other processes: their table, and the task runner's dispatcher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner
from sqlalchemy import Engine

from prefect_claim_dispatch import databases, outstanding
from prefect_claim_dispatch.dispatching.distant import Place
from prefect_claim_dispatch.dispatching.runners import DistantDesk, Pool, RunnerDispatcher
from tests.acceptance.runner_cases import settings_of_all_threads
from tests.kit.tables import TABLE

LEASE = timedelta(minutes=5)
PROCESSORS = "tests.acceptance.contract_processors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The table of the cases, and where their calls are counted."""

    engine: Engine
    folder: Path
    runner: Callable[[], TaskRunner[Any]]

    @contextmanager
    def dispatcher(self) -> Generator[RunnerDispatcher]:
        """To be opened in the flow run."""
        place = Place(
            database=None,
            table=TABLE.name,
            schema=None,
            identity=outstanding.identity(self.engine, TABLE),
            lease=LEASE,
            modules=(PROCESSORS,),
            catalogue=(),
        )
        pool = Pool(self.runner())
        pool.start()
        try:
            yield RunnerDispatcher(DistantDesk(place), pool, self.engine, TABLE, LEASE)
        finally:
            pool.close()

    def calls(self, id_: int) -> int:
        """How often the processor was called for that row."""
        file = self.folder / str(id_)
        return file.stat().st_size if file.exists() else 0


@contextmanager
def stage_of(mode: str, folder: Path, template: Path) -> Generator[Stage]:
    """The stage of that runner, of two processes; its environment is that of this process meanwhile."""
    shutil.copy(template, folder / "contract.db")
    url = f"sqlite:///{folder / 'contract.db'}"
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("CLAIM_DISPATCH_DATABASE_URL", url)
        environment.setenv("CONTRACT_CALLS", str(folder))
        environment.setenv("PREFECT_HOME", str(folder))
        stack.enter_context(settings_of_all_threads())
        runner = _runner(mode, stack)
        yield Stage(engine=databases.engine_for(url), folder=folder, runner=runner)


def _runner(mode: str, stack: ExitStack) -> Callable[[], TaskRunner[Any]]:
    if mode == "process pool":
        return lambda: ProcessPoolTaskRunner(max_workers=2)
    prefect_dask = pytest.importorskip("prefect_dask", reason="the extra 'dask' is not installed")
    import distributed

    cluster = stack.enter_context(distributed.LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=":0"))
    return lambda: prefect_dask.DaskTaskRunner(address=cluster.scheduler_address)
