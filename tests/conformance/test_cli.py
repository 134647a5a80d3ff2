"""``claim-dispatch`` as people and scripts run it: a process of its own, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest
from sqlalchemy import text

from prefect_claim_dispatch import engines, migrations
from tests.kit import keeping
from tests.kit.commanding import PRELOAD, Answer, command
from tests.kit.forks import ForkServer
from tests.kit.prefect_server import PrefectServer

PRINTING_PROCESSOR = """
import subprocess
from prefect_claim_dispatch import processor

@processor("shout")
def shout(payload):
    print("from python")
    subprocess.run(["echo", "from a child"], check=True)
"""
CATALOGUE = """
from typing import Annotated
from pydantic import BaseModel, Field
from prefect_claim_dispatch import action_type

print("a module that talks")

@action_type("email.welcome")
class Welcome(BaseModel):
    to: str
    copies: Annotated[int, Field(ge=1)] = 1

@action_type("comment.added")
class Comment(BaseModel):
    text: str
    answers: list["Comment"] = []
"""
NOTHING_LISTENS = "postgresql://someone:hunter2@127.0.0.1:1/nothing"


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    """Where commands are forked from: two hundred starts of Python would take minutes."""
    with ForkServer(keeping.run_folder() / f"commands-{os.getpid()}", *PRELOAD) as server:
        yield server


@pytest.fixture
def run_anywhere(tmp_path: Path, forks: ForkServer) -> Run:
    """Runs the command line in an empty directory, with no settings but the given ones."""

    def run(*arguments: str, stdin: str = "", environment: dict[str, str] | None = None) -> Answer:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLAIM_DISPATCH_")}
        settings = kept | {"PREFECT_HOME": str(tmp_path / "home")} | (environment or {})
        return command(forks, list(arguments), stdin=stdin, environment=settings, cwd=tmp_path)

    return run


@pytest.fixture
def run_empty(run_anywhere: Run, empty_database_url: str) -> Run:
    """Runs the command line against an empty database."""
    return lambda *arguments, **options: run_anywhere(
        *arguments, environment={"CLAIM_DISPATCH_DATABASE_URL": empty_database_url}, **options
    )


@pytest.fixture
def run(run_anywhere: Run, database_url: str) -> Run:
    """Runs the command line against a database with the action table."""
    return lambda *arguments, **options: run_anywhere(
        *arguments, environment={"CLAIM_DISPATCH_DATABASE_URL": database_url}, **options
    )


def execute(url: str, statement: str) -> None:
    """Do behind the library's back what no command does."""
    engine = engines.create(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def assert_one_line(errors: str) -> None:
    """No traceback, no riddle over many lines."""
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1


def test_first_steps_on_an_empty_database(run_empty: Run) -> None:
    """Migrate, publish, look: what the README shows."""
    assert run_empty("db", "current", "--json").document["revision"] is None

    upgraded = run_empty("db", "upgrade", "--json")
    published = run_empty("publish", "email.welcome", '{"to": "ada"}', "--priority", "5", "--json")
    listed = run_empty("list", "--json")
    status = run_empty("status", "--json")

    newest = migrations.newest_revision()
    assert upgraded.document == {"table": "action_logs", "upgraded": True, "revision": newest}
    assert (published.code, published.document["outcome"]) == (0, "created")
    assert [(row["id"], row["payload"], row["priority"]) for row in listed.document] == [
        (published.document["id"], {"to": "ada"}, 5)
    ]
    assert (status.document["pending"], status.document["due"]) == (1, 1)
    assert all(answer.errors == "" for answer in (upgraded, published, listed, status))


def test_wake_up_is_installed_shown_and_removed(run: Run, database_url: str) -> None:
    """Each answer says what is so now, and whether that is new; SQLite gets one line instead."""
    table = ("--table", "public.action_logs") if database_url.startswith("postgresql") else ()
    if not table:
        refused = run("db", "wake-up")
        assert refused.code != 0
        assert "SQLite needs no wake-up" in refused.errors
        return

    printed = run("db", "wake-up", "--sql", *table)
    answers = [run("db", "wake-up", "--json", *options, *table) for options in ((), (), ("--remove",), ("--remove",))]

    assert printed.output.count("CREATE OR REPLACE") == 2
    assert "AFTER INSERT ON public.action_logs" in printed.output
    assert [answer.document["installed"] for answer in answers] == [True, True, False, False]
    assert [answer.document["changed"] for answer in answers] == [True, False, True, False]


def test_second_upgrade_says_that_nothing_was_to_do(run: Run) -> None:
    """Deployments run it every time."""
    answer = run("db", "upgrade", "--json")

    assert (answer.code, answer.document["upgraded"]) == (0, False)


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_sql_is_printed_for_an_administrator(run_anywhere: Run, dialect: str) -> None:
    """Without a database, and with nothing but SQL on standard output."""
    answer = run_anywhere("db", "sql", "--dialect", dialect, "--table", "later")

    assert (answer.code, answer.errors) == (0, "")
    assert answer.output == migrations.sql(dialect, table="later")


def test_publish_reads_standard_input(run: Run) -> None:
    """A payload may be too long, or too secret, for a command line."""
    one = run("publish", "a", "-", "--json", stdin='{"n": 1}\n')
    many = run("publish", "b", "--lines", "--delay", "1h", "--json", stdin='{"n": 2}\n\n{"n": 3}\n')

    assert one.code == 0
    assert [receipt["outcome"] for receipt in many.document["receipts"]] == ["created", "created"]
    rows = run("list", "--json").document
    assert [(row["type"], row["payload"]) for row in rows] == [
        ("b", {"n": 3}),
        ("b", {"n": 2}),
        ("a", {"n": 1}),
    ]


@pytest.fixture
def cataloguing(tmp_path: Path) -> dict[str, str]:
    """The environment with a catalogue of two types, and no database."""
    (tmp_path / "app_types.py").write_text(CATALOGUE)
    return {"CLAIM_DISPATCH_CATALOGUE": "app_types", "CLAIM_DISPATCH_DATABASE_URL": NOTHING_LISTENS}


def test_types_are_exported_as_one_document(run_anywhere: Run, cataloguing: dict[str, str]) -> None:
    """For publishers in other languages: where to insert, and what; without a database, and the same each time."""
    answers = [run_anywhere("types", "--json", "--table", "app.later", environment=cataloguing) for _ in range(2)]
    one = run_anywhere("types", "email.welcome", "--json", environment=cataloguing)

    document = answers[0].document
    assert answers[0].output == answers[1].output
    assert (document["table"], list(document["types"])) == ("app.later", ["comment.added", "email.welcome"])
    welcome = document["types"]["email.welcome"]
    assert welcome["class"] == "app_types.Welcome"
    assert welcome["schema"]["required"] == ["to"]
    assert welcome["schema"]["properties"]["copies"]["minimum"] == 1
    assert one.document == {"table": "action_logs", "types": {"email.welcome": welcome}}
    assert "a module that talks" in answers[0].errors
    for described in document["types"].values():
        jsonschema.Draft202012Validator.check_schema(described["schema"])


def test_types_are_shown_to_people(run_anywhere: Run, cataloguing: dict[str, str]) -> None:
    """With what each must have, also of a class that refers to itself; a module may be named on the spot."""
    by_setting = run_anywhere("types", environment=cataloguing)
    by_option = run_anywhere("types", "--catalogue", "app_types")
    none = run_anywhere("types")

    assert by_setting.output == by_option.output
    lines = [line for line in by_setting.output.splitlines() if "app_types" in line]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines] == [
        ["comment.added", "app_types.Comment", "text", "answers"],
        ["email.welcome", "app_types.Welcome", "to", "copies"],
    ]
    assert "CLAIM_DISPATCH_CATALOGUE" in none.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["types", "email.wlecome"], "has comment.added, email.welcome"),
        (["types", "--catalogue", "no_such_module"], "catalogue module 'no_such_module' can't be imported"),
        (["publish", "a", "--catalogue", "no_such_module"], "catalogue module 'no_such_module' can't be imported"),
    ],
    ids=["type", "module", "publish"],
)
def test_what_the_catalogue_has_not_is_one_line(
    run_anywhere: Run, cataloguing: dict[str, str], arguments: Sequence[str], told: str
) -> None:
    """Exit code 1, and nothing on standard output."""
    answer = run_anywhere(*arguments, environment=cataloguing)

    assert (answer.code, answer.output) == (1, "")
    assert told in answer.errors


@pytest.mark.parametrize(
    ("arguments", "written"),
    [(["{}"], ""), (["-"], "{}"), (["--lines"], '{"to": "ada"}\n{}\n')],
    ids=["argument", "standard input", "lines"],
)
@pytest.mark.parametrize("option", [[], ["--catalogue", "app_types"]], ids=["setting", "option"])
def test_publish_asks_the_catalogue(
    run_anywhere: Run,
    cataloguing: dict[str, str],
    database_url: str,
    *,
    arguments: Sequence[str],
    written: str,
    option: Sequence[str],
) -> None:
    """A script's typo is refused as the application's is, and no row stays."""
    environment = {"CLAIM_DISPATCH_DATABASE_URL": database_url}
    environment |= {} if option else {"CLAIM_DISPATCH_CATALOGUE": cataloguing["CLAIM_DISPATCH_CATALOGUE"]}

    refused = run_anywhere("publish", "email.welcome", *arguments, *option, stdin=written, environment=environment)

    assert (refused.code, refused.output) == (1, "")
    assert "payload of 'email.welcome' does not fit app_types.Welcome: to: Field required" in refused.errors
    assert run_anywhere("list", "--json", environment=environment).document == []


def test_publish_of_lines_is_all_or_nothing(run: Run) -> None:
    """A broken line in the middle must not leave half of a file behind."""
    answer = run("publish", "b", "--lines", stdin='{"n": 1}\nbroken\n{"n": 3}\n')

    assert answer.code == 2
    assert "line 2" in answer.errors
    assert run("list", "--json").document == []


def test_publish_keeps_what_has_the_key(run: Run) -> None:
    """Scripts are run twice."""
    first = run("publish", "a", "--idempotency-key", "k", "--json")
    second = run("publish", "a", "--idempotency-key", "k", "--json")
    third = run("publish", "a", "--idempotency-key", "k", "--on-conflict", "raise")

    assert second.document == {"id": first.document["id"], "outcome": "kept"}
    assert third.code == 1
    assert_one_line(third.errors)


def test_show_has_every_column(run: Run) -> None:
    """As text for a person and as JSON for a script."""
    id_ = str(run("publish", "a", '{"to": "ada"}', "--json").document["id"])

    spoken, document = run("show", id_), run("show", id_, "--json").document

    assert all(column in spoken.output for column in document)
    assert '"to": "ada"' in spoken.output


def test_missing_action_is_an_error(run: Run) -> None:
    """Exit code 1: the command was right, the action isn't there."""
    answer = run("show", "4711")

    assert (answer.code, answer.output) == (1, "")
    assert_one_line(answer.errors)


def test_escape_sequences_do_not_reach_the_terminal(run: Run, database_url: str) -> None:
    """A type written by raw SQL could otherwise clear the screen of whoever is on call."""
    execute(
        database_url,
        "INSERT INTO action_logs (type) VALUES (REPLACE('a~[2J', '~', "
        + ("CHR(27)" if database_url.startswith("postgres") else "CHAR(27)")
        + "))",
    )

    answers = [run("list"), run("status"), run("show", "1")]

    assert all(answer.code == 0 for answer in answers)
    assert all("\x1b" not in answer.output for answer in answers)


def test_operator_acts_by_id(run: Run) -> None:
    """Cancel, retry, reschedule; named actions are changed without a question."""
    id_ = str(run("publish", "a", "--json").document["id"])

    cancelled = run("cancel", id_, "--reason", "not wanted", "--json")
    again = run("cancel", id_)
    retried = run("retry", id_, "--json")
    moved = run("reschedule", id_, "--end-at", "2100-01-01T00:00:00+02:00", "--json")

    assert (cancelled.code, cancelled.document["cancelled"]) == (0, [int(id_)])
    assert (again.code, again.errors) == (1, f"#{id_} was not cancelled: cancelled\n")
    assert retried.document["retried"] == [int(id_)]
    assert moved.document["rescheduled"] == [int(id_)]
    row = run("show", id_, "--json").document
    assert (row["status"], row["end_at"]) == ("pending", "2099-12-31T22:00:00+00:00")
    assert row["errors"][-1]["message"] == "not wanted"


def test_bulk_change_is_previewed_and_asks(run: Run) -> None:
    """With nobody to ask, --yes has to be said."""
    run("publish", "b", "--lines", stdin="{}\n{}\n{}\n")
    run("publish", "other")

    preview = run("cancel", "--type", "b", "--dry-run", "--json")
    unasked = run("cancel", "--type", "b")
    sure = run("cancel", "--type", "b", "--yes", "--json")

    assert (len(preview.document["matched"]), preview.document["cancelled"]) == (3, [])
    assert unasked.code == 2
    assert "--yes" in unasked.errors
    assert sure.document["cancelled"] == preview.document["matched"]
    assert run("status", "--json").document["pending"] == 1


def test_prune_deletes_what_was_settled_long_ago(run: Run) -> None:
    """Zero is long ago here; the default of what is pruned is everything settled."""
    run("publish", "b", "--lines", stdin="{}\n{}\n")
    run("cancel", "--type", "b", "--yes")

    preview = run("prune", "--older-than", "0s", "--dry-run", "--json")
    pruned = run("prune", "--older-than", "0s", "--yes", "--json")

    assert preview.document == {"dry_run": True, "matched": 2, "pruned": 0}
    assert pruned.document == {"dry_run": False, "matched": 2, "pruned": 2}
    assert run("list", "--json").document == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["publish"],
        ["publish", "a", "{broken"],
        ["publish", "a", "--delay", "5"],
        ["publish", "a", "--delay", "5m", "--end-at", "2100-01-01T00:00:00Z"],
        ["publish", "a", "--end-at", "2100-01-01T00:00:00"],
        ["publish", "a", "--lines", "--idempotency-key", "k"],
        ["list", "--status", "done"],
        ["list", "--limit", "0"],
        ["list", "--older-than", "soon"],
        ["show"],
        ["show", "seven"],
        ["cancel"],
        ["retry", "--status", "processed", "--yes"],
        ["reschedule", "1"],
        ["prune"],
        ["db", "sql", "--dialect", "oracle"],
        ["run", "--stay", "long"],
        ["run", "--limit", "0"],
        ["run", "--lease", "0s"],
        ["run", "--lease", "8d"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_apart_from_failure(run_anywhere: Run, arguments: Sequence[str]) -> None:
    """Exit code 2, nothing on standard output, and no database needed to say so."""
    answer = run_anywhere(*arguments, environment={"CLAIM_DISPATCH_DATABASE_URL": NOTHING_LISTENS})

    assert (answer.code, answer.output) == (2, "")
    assert answer.errors.startswith("error: ")
    assert "Traceback" not in answer.errors


@pytest.mark.parametrize("command", ["status", "list", "show 1", "publish a", "db upgrade", "db current", "retry 1"])
def test_unreachable_database_is_one_line(run_anywhere: Run, command: str) -> None:
    """Without the password, wherever the URL came from."""
    by_option = run_anywhere(*command.split(), "--database-url", NOTHING_LISTENS)
    by_setting = run_anywhere(*command.split(), environment={"CLAIM_DISPATCH_DATABASE_URL": NOTHING_LISTENS})

    for answer in (by_option, by_setting):
        assert (answer.code, answer.output) == (1, "")
        assert_one_line(answer.errors)
        assert "can't be reached" in answer.errors
        assert "hunter2" not in answer.errors


def test_password_is_not_in_the_traceback_either(run_anywhere: Run) -> None:
    """--debug is what people paste into issues."""
    answer = run_anywhere("status", "--debug", "--database-url", NOTHING_LISTENS)

    assert answer.code == 1
    assert "Traceback" in answer.errors
    assert "hunter2" not in answer.errors


@pytest.mark.parametrize("command", ["status", "list", "show 1", "publish a", "prune --older-than 1d --yes"])
def test_missing_table_says_what_to_run(run_empty: Run, command: str) -> None:
    """One line, exit code 1."""
    answer = run_empty(*command.split())

    assert answer.code == 1
    assert_one_line(answer.errors)
    assert "claim-dispatch db upgrade" in answer.errors


@pytest.mark.parametrize("command", ["status", "publish a", "cancel 1", "db upgrade"])
def test_table_of_a_newer_version_is_refused(run: Run, database_url: str, command: str) -> None:
    """Before anything is read or written."""
    execute(database_url, "UPDATE action_logs_version SET version_num = '9999'")

    answer = run(*command.split())

    assert answer.code == 1
    assert_one_line(answer.errors)
    assert "upgrade prefect-claim-dispatch" in answer.errors


def test_senseless_settings_are_one_line(run_anywhere: Run) -> None:
    """The variable is named, its value is not shown."""
    answer = run_anywhere("status", environment={"CLAIM_DISPATCH_LIMIT": "zero"})

    assert answer.code == 1
    assert_one_line(answer.errors)
    assert "CLAIM_DISPATCH_LIMIT" in answer.errors


def test_other_table_by_option(run: Run) -> None:
    """Several applications may share a database."""
    assert run("db", "upgrade", "--table", "later").code == 0

    run("publish", "a", "--table", "later")

    assert len(run("list", "--json", "--table", "later").document) == 1
    assert run("list", "--json").document == []


def test_embedded_default_needs_no_setting(run_anywhere: Run, tmp_path: Path) -> None:
    """Its table is made on first use, in Prefect's home directory."""
    answer = run_anywhere("publish", "a", "--json")

    assert answer.code == 0
    assert (tmp_path / "home" / "claim-dispatch.db").exists()
    assert run_anywhere("db", "current", "--json").document["revision"] == migrations.newest_revision()


def test_reader_that_has_seen_enough_is_no_error(run: Run, database_url: str) -> None:
    """As in ``claim-dispatch list --json | head``."""
    run("publish", "a", "--lines", stdin="{}\n" * 3000)
    # Unbuffered, Python itself loses what a reader leaves, without a word.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect_claim_dispatch.cli", "list", "--json", "--limit", "3000"],
        env=environment | {"CLAIM_DISPATCH_DATABASE_URL": database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.readline()
    process.stdout.close()

    with closing(process.stderr):
        assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 1


def test_run_reports_one_document(
    run_anywhere: Run, database_url: str, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """Whatever processors and their children print goes to standard error, where the logs are."""
    environment = prefect_server.env | {"CLAIM_DISPATCH_DATABASE_URL": database_url}
    (tmp_path / "printing.py").write_text(PRINTING_PROCESSOR)
    run_anywhere("publish", "shout", environment=environment)

    answer = run_anywhere("run", "--processors", "printing", "--json", environment=environment)

    assert answer.code == 0, answer.errors
    assert (answer.document["claimed"], answer.document["processed"], answer.document["failed"]) == (1, 1, 0)
    assert "from python" in answer.errors
    assert "from a child" in answer.errors


@pytest.mark.parametrize("module", ["nowhere", "broken"])
def test_processors_that_do_not_import_are_one_line(
    run_anywhere: Run, database_url: str, tmp_path: Path, module: str
) -> None:
    """Nothing is claimed for processors that can't run."""
    (tmp_path / "broken.py").write_text("def (")

    answer = run_anywhere("run", "--processors", module, environment={"CLAIM_DISPATCH_DATABASE_URL": database_url})

    assert (answer.code, answer.output) == (1, "")
    assert_one_line(answer.errors)
    assert module in answer.errors


@pytest.mark.parametrize("command", ["run", "demo"])
def test_missing_prefect_says_what_to_install(command: str) -> None:
    """A web application installs the package without Prefect, and may still have the command line."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['httpx', 'prefect'])\n"
        f"from prefect_claim_dispatch import cli\nsys.exit(cli.run([{command!r}]))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert "prefect-claim-dispatch[prefect]" in done.stderr


def test_help_imports_neither_prefect_nor_alembic() -> None:
    """It has to answer at once."""
    code = (
        "import sys; from prefect_claim_dispatch import cli; code = cli.run(['--help']); "
        "sys.exit(code or bool({'prefect', 'alembic'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert done.returncode == 0
    assert b"publish" in done.stdout


RULING_PROCESSOR = """
from prefect_claim_dispatch import processor

def state(action):
    if action.payload["order"] == 13:
        raise LookupError("no such order")
    return {"is_paid": action.payload["order"] == 7}

@processor("order.expire", facts=state)
def expire(payload):
    pass
"""
UNPAID = json.dumps({"and": [{"==": [{"var": "payload.shop"}, "north"]}, {"!": [{"var": "facts.is_paid"}]}]})


def publish_order(run: Run, order: int, rules: str = UNPAID) -> str:
    """The id of an action whose rules look at payload and facts."""
    payload = json.dumps({"shop": "north", "order": order})
    return str(run("publish", "order.expire", payload, "--rules", rules, "--json").document["id"])


def test_rules_are_explained_without_processors(run: Run) -> None:
    """Where only the core is installed too: Prefect is not even looked for."""
    id_ = publish_order(run, 7)

    said = run("rules", "explain", id_)
    document = run("rules", "explain", id_, "--json").document

    assert (said.code, said.errors) == (0, "")
    assert "(pending): its rules hold" in said.output
    assert "facts: {}, since no processors are given" in said.output
    assert (document["rules"]["state"], document["verdict"]) == ("true", "its rules hold")


def test_rules_are_explained_with_the_facts_of_the_processor(run: Run, tmp_path: Path) -> None:
    """The same context as at dispatch: the part that is false is the one that made dispatch cancel it."""
    (tmp_path / "ruling.py").write_text(RULING_PROCESSOR)
    id_ = publish_order(run, 7)

    document = run("rules", "explain", id_, "--processors", "ruling", "--json").document
    shown = run("rules", "explain", id_, "--processors", "ruling", "--values").output
    hidden = run("rules", "explain", id_, "--processors", "ruling").output

    assert [part["state"] for part in document["rules"]["parts"]] == ["true", "false"]
    assert document["verdict"] == "its rules are false"
    assert '= "north"' in shown
    assert '= "north"' not in hidden


def test_rules_that_cannot_be_explained_say_why(run: Run, database_url: str, tmp_path: Path) -> None:
    """No rules, no facts, no payload, no action: each is told, none is a traceback."""
    (tmp_path / "ruling.py").write_text(RULING_PROCESSOR)
    without = str(run("publish", "order.expire", '{"order": 1}', "--json").document["id"])
    faceless, broken = publish_order(run, 13), publish_order(run, 1)
    execute(database_url, f"UPDATE action_logs SET payload = '[1]' WHERE id = {broken}")
    late = publish_order(run, 2, json.dumps({"datetime": {"var": "payload.shop"}}))

    assert "it has no rules" in run("rules", "explain", without).output
    assert "LookupError: no such order" in run("rules", "explain", faceless, "--processors", "ruling").output
    assert "its payload can't be decoded" in run("rules", "explain", broken).output
    assert "rules can't be evaluated: " in run("rules", "explain", late).output
    assert run("rules", "explain", late).code == 0
    missing = run("rules", "explain", "4711")
    assert missing.code == 1
    assert_one_line(missing.errors)
