"""Each act is struck at each of its statements; then all is healed, drained and audited.

``make faults`` prints the same cells as a table; see `tests.faults.matrix`.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

import prefect_claim_dispatch.statements
from prefect_claim_dispatch import databases, engines, operations
from tests.conftest import MIGRATE
from tests.faults.acts import ACTS, TYPE, Act
from tests.faults.matrix import DIALECTS, Cell, boundaries, cells, moments, statement_names
from tests.faults.strikes import CAUGHT, DONE, scene_of, snapshot
from tests.kit import postgres
from tests.kit.auditor import audit, report
from tests.kit.cases import Violation
from tests.kit.forks import ForkServer
from tests.kit.proxy import COMMIT, Proxy
from tests.kit.tables import statements_of

pytestmark = pytest.mark.timeout(120)

IN_COMMIT = {"sqlite": -signal.SIGXFSZ, "postgresql": CAUGHT}
LAST = {(cell.act, cell.dialect, cell.fault): cell for cell in cells()}
"""Of each act, database and fault the last moment of the last statement: where the most is at stake."""

CELLS = [
    pytest.param(cell, id=str(cell), marks=() if cell in LAST.values() else pytest.mark.exhaustive) for cell in cells()
]


@dataclass(frozen=True, slots=True)
class Stand:
    """Where cells of one database are run: the fork server, and a proxy on the way to PostgreSQL."""

    forks: ForkServer
    postgresql: str
    proxy: Proxy


@pytest.fixture(scope="module")
def stand(postgres_server: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Shared by the cells: each has the table for itself, and empties it before."""
    folder = tmp_path_factory.mktemp("forks")
    with (
        postgres.fresh_database(postgres_server, prepare=MIGRATE) as url,
        Proxy.before(postgres_server) as proxy,
        ForkServer(folder, "tests.faults.strikes") as forks,
    ):
        yield Stand(forks, url, proxy)


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> str:
    """The database of the cell, unless the test is parametrized by it."""
    return request.getfixturevalue("cell").dialect


@pytest.fixture
def engine(dialect: str, stand: Stand, tmp_path: Path, sqlite_template: Callable[[], Path]) -> Iterator[Engine]:
    """An engine on an empty table of that database."""
    if dialect == "sqlite":
        shutil.copy(sqlite_template(), tmp_path / "matrix.db")
    engine = engines.create(f"sqlite:///{tmp_path / 'matrix.db'}" if dialect == "sqlite" else stand.postgresql)
    if dialect == "sqlite":
        event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous = OFF"))
    else:
        with engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE action_logs, action_logs_paused RESTART IDENTITY")
    yield engine
    engine.dispose()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def struck(cell: Cell, engine: Engine, stand: Stand, folder: Path) -> int:
    """Do the act of *cell* in a process that is struck; its exit code."""
    call = ("tests.faults.strikes:strike", cell.act)
    match cell.fault:
        case "SIGKILL":
            return stand.forks.call(*call, url_of(engine), str(folder), f"{cell.statement}:{cell.moment}:kill")
        case "exception":
            return stand.forks.call(*call, url_of(engine), str(folder), f"{cell.statement}:{cell.moment}:raise")
        case "cut before":

            def cut() -> None:
                stand.proxy.cut()
                stand.proxy.heal()

            url = stand.proxy.url(stand.postgresql)
            failpoint = f"{cell.statement}:before:stop"
            return stand.forks.call(*call, url, str(folder), failpoint, when_stopped=cut)
        case "cut after COMMIT" if cell.dialect == "sqlite":
            return stand.forks.call(*call, url_of(engine), str(folder), f"{cell.statement}:in-commit")
        case "cut after COMMIT":
            # Where each statement stands alone, its own answer is the one that tells that it is committed.
            commits_each = ACTS[cell.act].commits_each
            pattern = b"INSERT INTO" if commits_each else COMMIT
            failpoint = f"{cell.statement}:{'before' if commits_each else 'after'}:stop"
            lose = lambda: stand.proxy.cut_after(pattern)  # noqa: E731
            url, lost = stand.proxy.url(stand.postgresql), stand.proxy.lost_answers
            code = stand.forks.call(*call, url, str(folder), failpoint, when_stopped=lose)
            assert stand.proxy.lost_answers == lost + 1, "the answer came through"
            return code


def expected_code(cell: Cell) -> int:
    match cell.fault:
        case "SIGKILL":
            return -signal.SIGKILL
        case "cut after COMMIT":
            return IN_COMMIT[cell.dialect]
        case _:
            return CAUGHT


def has_committed(cell: Cell) -> bool:
    """Whether the database has what the act wrote, at the moment of the strike."""
    act = ACTS[cell.act]
    if cell.fault == "cut after COMMIT":
        return cell.dialect == "postgresql"
    is_alone = act.commits_each and cell.dialect == "postgresql"
    return cell.moment == "after-commit" or (is_alone and cell.moment == "after")


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_lost_or_done_twice_when_struck(cell: Cell, engine: Engine, stand: Stand, tmp_path: Path) -> None:
    """All or nothing at the strike; after it, all promises (S1 to S8, L1, L2) for everything that was published."""
    act = ACTS[cell.act]

    code = struck(cell, engine, stand, tmp_path)

    assert code == expected_code(cell), stand.forks.log.read_text(errors="replace")[-3_000:]
    before, after = json.loads((tmp_path / "before.json").read_text()), snapshot(engine)
    wrote = has_committed(cell) and act.changes
    assert (after != before) == wrote, f"before: {before}\nafter: {after}"
    violations = healed_and_audited(cell, engine, tmp_path, {row[0] for row in before if row[0]})
    assert not violations, report(violations)


def healed_and_audited(cell: Cell, engine: Engine, folder: Path, before: set[int]) -> list[Violation]:
    """Do again what is safe to do again, let all that is due be done, and audit."""
    scene, earlier = scene_of(engine, folder), operations.find(engine, limit=None)
    if ACTS[cell.act].again:
        ACTS[cell.act].do(scene, None)
    for _ in range(2):
        scene.drain()
    statuses = operations.counts(engine).statuses
    assert statuses["claimed"] == statuses["pending"] == 0
    return audit(
        engine,
        scene.ledger,
        scene.published,
        earlier=earlier,
        pruned=before - {row.id for row in earlier},
        retried=before if cell.act == "retry" else (),
        bad=operations.find_ids(engine, type=TYPE),
    )


HEALTHY = [pytest.param(name, dialect, id=f"{name}, {dialect}") for name in ACTS for dialect in DIALECTS]


def sender(act: Act, engine: Engine) -> Engine:
    """The engine by which *act* sends what it sends on *engine*'s database."""
    if not act.commits_each:
        return engine
    url = url_of(engine)
    return databases.autocommitting_engine(url) or databases.engine_for(url)


@pytest.mark.parametrize(("name", "dialect"), HEALTHY)
def test_act_sends_what_it_says(name: str, dialect: str, engine: Engine, stand: Stand, tmp_path: Path) -> None:
    """A statement that an act sends and does not name would be a row that is missing in the matrix.

    One without a name could not be struck.
    """
    act: Act = ACTS[name]
    scene = scene_of(engine, tmp_path)
    made = act.prepare(scene)
    before = snapshot(engine)

    with statements_of(sender(act, engine)) as sent:
        act.do(scene, made)

    named = [statement for statement in sent if "SAVEPOINT" not in statement]
    assert tuple(dict.fromkeys(named)) == act.statements(dialect)
    assert (snapshot(engine) != before) == act.changes


def test_unstruck_act_is_done(stand: Stand, tmp_path: Path, sqlite_url: str) -> None:
    """Exit code 0 is what an unarmed act has, so none of the cells could pass without its fault."""
    assert stand.forks.call("tests.faults.strikes:strike", "claim", sqlite_url, str(tmp_path), None) == DONE


def test_every_statement_of_the_package_is_in_the_matrix() -> None:
    """A boundary without a failpoint is one at which nobody knows what a crash leaves behind."""
    folder = Path(prefect_claim_dispatch.statements.__file__).parent
    named = statement_names(folder)

    assert all(named.values()), f"without a name: {[name for name, names in named.items() if not names]}"
    assert set().union(*named.values()) == {statement for _, statement in boundaries()}
    assert len(named) >= 22


def test_statement_without_a_name_or_a_row_is_noticed(tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "new.py").write_text(
        "def bare(table) -> UpdateBase:\n    return update(table)\n"
        "def known(table) -> Select[Any]:\n    return select(table).execution_options(**{NAME: 'known'})\n"
        "def changed(table) -> Update:\n    return _change(table, 'through another')\n"
        "def _change(table, name):\n    return update(table).execution_options(**{NAME: name})\n"
    )

    assert statement_names(tmp_path) == {
        "new.bare": set(),
        "new.known": {"known"},
        "new.changed": {"through another"},
    }


def test_every_cell_is_run_or_says_why_not() -> None:
    """100 per cent: four faults on two databases for each boundary, and no fault without its moments."""
    places = [(a, s, d, f) for a, s in boundaries() for d in DIALECTS for f in ("SIGKILL", "exception")]

    assert all(
        isinstance(moments(*place), str) == (place[1] not in ACTS[place[0]].statements(place[2])) for place in places
    )
    assert len({str(cell) for cell in cells()}) == len(cells())
