"""Processors: what may be registered, who is asked for which type, and what the function is called with."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    NotRequired,  # pydantic wants this one before Python 3.12
)

import pytest
from prefect import flow, task
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from prefect_claim_dispatch import Action, Snooze
from prefect_claim_dispatch.errors import RegistrationError
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.processors import Processor, Registry, load_modules, processor

if TYPE_CHECKING:
    pass


class Welcome(BaseModel):
    """A payload as a pydantic model."""

    to: str
    copies: int = Field(default=1, ge=1)


class Note(TypedDict):
    """A payload as a TypedDict."""

    text: str
    level: NotRequired[int]


def nothing() -> None:
    """Does nothing."""


def something_else() -> None:
    """Does nothing, from another place."""


def action(payload: Mapping[str, Any]) -> Action:
    """A claimed action with that payload."""
    now = datetime.now(UTC)
    return Action(id=42, type="email.welcome", payload=payload, end_at=now, created_at=now, claim_count=1)


def registered(function: Callable[..., Any], type_: str = "email.welcome", **options: Any) -> Processor:
    """*function* as a registry of its own has it."""
    registry = Registry()
    processor(type_, registry=registry, **options)(function)
    found = registry.match(type_)
    assert found is not None
    return found


def registry_of(*types: str) -> Registry:
    """A registry with a processor for each of *types*."""
    registry = Registry()
    for type_ in types:
        processor(type_, registry=registry)(nothing)
    return registry


def matched(registry: Registry, type_: str) -> str | None:
    """Under which type or pattern the processor of *type_* was registered."""
    found = registry.match(type_)
    return found.pattern if found else None


class TestMatching:
    """Who is asked."""

    def test_exact_type_beats_every_pattern(self) -> None:
        """A special case is written beside the rule, and must not depend on the order of imports."""
        types = ["report.*", "report.generate", "report.generat*", "*"]

        found = {matched(registry_of(*order), "report.generate") for order in (types, types[::-1])}

        assert found == {"report.generate"}

    @pytest.mark.parametrize(
        ("type_", "pattern"),
        [
            ("report.daily.sales", "report.daily.*"),
            ("report.daily.", "report.daily.*"),
            ("report.weekly", "report.*"),
            ("email.welcome", "*"),
            ("REPORT.weekly", "*"),
        ],
    )
    def test_longest_pattern_wins(self, type_: str, pattern: str) -> None:
        """The longest says the most about the type. Types are told apart by case."""
        types = ["*", "report.*", "report.daily.*"]

        found = {matched(registry_of(*order), type_) for order in (types, types[::-1])}

        assert found == {pattern}

    def test_patterns_of_equal_length_have_an_order(self) -> None:
        """Two workers that import the modules in different order must dispatch alike."""
        found = {matched(registry_of(*order), "a.b") for order in (["a.*", "*.b"], ["*.b", "a.*"])}

        assert len(found) == 1

    def test_type_that_nobody_registered_matches_nothing(self) -> None:
        """None, and not a default: such actions wait and are reported."""
        registry = registry_of("email.welcome", "report.*")

        assert matched(registry, "email.welcome.again") is None
        assert matched(registry, "report") is None
        assert matched(registry, "") is None

    def test_type_that_looks_like_a_pattern_is_only_matched(self) -> None:
        """Anybody may insert a row of type ``*`` or ``[a-z]``; it is text to match, never a pattern."""
        registry = registry_of("email.*", "b")

        assert matched(registry, "email.*") == "email.*"
        assert matched(registry, "*") is None
        assert matched(registry, "[a-z]") is None

    def test_types_are_listed_sorted(self) -> None:
        """For `doctor` and for people: what this process can do."""
        assert registry_of("report.*", "email.welcome", "a").types == ("a", "email.welcome", "report.*")


class TestRegistering:
    """What the decorator takes, and gives back."""

    def test_function_comes_back_unchanged(self) -> None:
        """Callable and testable on its own, with no Prefect run around it."""

        def greet(payload: Welcome) -> str:
            return f"hello {payload.to}"

        decorated = processor("email.welcome", registry=Registry())(greet)

        assert decorated is greet
        assert decorated(Welcome(to="ada")) == "hello ada"

    def test_task_comes_back_unchanged(self) -> None:
        """The author's task is still theirs, to be called from flows of theirs."""

        @task(retries=3, name="the author's name")
        def greet(payload: dict[str, str]) -> str:
            return f"hello {payload['to']}"

        before = dict(vars(greet))
        decorated = processor("email.welcome", registry=Registry())(greet)

        assert decorated is greet
        assert vars(greet) == before
        assert decorated.fn({"to": "ada"}) == "hello ada"

    def test_flow_comes_back_unchanged(self) -> None:
        """The same for a flow, which may be a deployment of its own besides."""

        @flow(name="the-authors-name")
        def greet(payload: dict[str, str]) -> str:
            return f"hello {payload['to']}"

        before = dict(vars(greet))
        decorated = processor("email.welcome", registry=Registry())(greet)

        assert decorated is greet
        assert vars(greet) == before
        assert decorated.fn({"to": "ada"}) == "hello ada"

    def test_processor_knows_whether_it_is_a_flow(self) -> None:
        """It decides the mode of dispatch: a subflow run costs the server ten times a task run."""
        assert registered(flow(nothing)).is_flow
        assert not registered(task(nothing)).is_flow
        assert not registered(nothing).is_flow
        assert registered(flow(nothing)).function is registered(task(nothing)).function is nothing

    def test_several_types_may_share_a_function(self) -> None:
        """Decorators stack."""
        registry = Registry()

        processor("email.welcome", registry=registry)(processor("email.farewell", registry=registry)(nothing))

        assert registry.types == ("email.farewell", "email.welcome")

    @pytest.mark.parametrize("type_", ["email.welcome", "email.*"])
    def test_second_processor_of_a_type_is_refused_with_both_places_named(self, type_: str) -> None:
        """Whichever were imported last would win otherwise, and mails would stop for no visible reason."""
        registry = Registry()
        processor(type_, registry=registry)(nothing)

        with pytest.raises(RegistrationError) as refused:
            processor(type_, registry=registry)(something_else)

        for told in (type_, "nothing", "something_else", __file__, "choose another type"):
            assert told in str(refused.value)
        found = registry.match("email.welcome")
        assert found is not None
        assert found.function is nothing

    def test_reload_replaces(self) -> None:
        """`importlib.reload` in a notebook defines the same function again; the new one is what the author wants."""
        registry = Registry()

        def define(answer: int) -> Callable[[], int]:
            def same_place() -> int:
                return answer

            return processor("email.welcome", registry=registry)(same_place)

        define(1)
        define(2)

        found = registry.match("email.welcome")
        assert found is not None
        assert found.function() == 2

    @pytest.mark.parametrize(
        ("type_", "message"),
        [
            ("", "1 to 120 printable characters"),
            ("a" * 121, "1 to 120 printable characters"),
            ("a\nb", "1 to 120 printable characters"),
            ("a?", "only wildcard"),
            ("[ab]", "only wildcard"),
        ],
    )
    def test_malformed_type_is_refused(self, type_: str, message: str) -> None:
        """It could never match a row, and its author would wait in vain."""
        with pytest.raises(RegistrationError, match=message):
            registered(nothing, type_)

    @pytest.mark.parametrize("max_attempts", [0, -1])
    def test_less_than_one_attempt_is_refused(self, max_attempts: int) -> None:
        """Every action would be dead before it began."""
        with pytest.raises(RegistrationError, match=f"max_attempts must be 1 or more, got {max_attempts}"):
            registered(nothing, max_attempts=max_attempts)

    @pytest.mark.parametrize("decorate", [task, flow])
    @pytest.mark.parametrize("options", [{"retries": 2}, {"retry_delay_seconds": 2}])
    def test_retries_of_a_task_or_flow_belong_into_its_own_decorator(
        self, decorate: Callable[..., Any], options: dict[str, int]
    ) -> None:
        """Two places that say how often would contradict each other one day."""
        with pytest.raises(RegistrationError, match="own decorator"):
            registered(decorate(nothing), **options)

    @pytest.mark.parametrize("decorate", [task, flow])
    def test_time_limit_may_be_put_on_a_task_or_flow(self, decorate: Callable[..., Any]) -> None:
        """A limit is the claim flow's business too: an action without one may hold its slot for ever."""
        found = registered(decorate(nothing), timeout=timedelta(seconds=5))

        assert found.options.timeout == timedelta(seconds=5)


def takes_payload(payload: dict[str, Any]) -> None:
    """Payload only."""


def takes_action(action: Action) -> None:
    """Action only."""


def takes_both_by_name(*, action: Action, payload: dict[str, Any]) -> None:
    """Both, keyword-only."""


def takes_more_by_default(payload: dict[str, Any], session: object = None, *rest: object, **others: object) -> None:
    """More, but nothing that would be missed."""


def wants_more(payload: dict[str, Any], session: object) -> None:
    """Something that nobody passes."""


def wants_it_by_position(payload: dict[str, Any], /) -> None:
    """By position only."""


def yields(payload: dict[str, Any]) -> Any:
    """A generator: calling it does nothing at all."""
    yield payload


async def yields_asynchronously(payload: dict[str, Any]) -> Any:
    """An async generator."""
    yield payload


class TestSignatures:
    """A signature that can't be called is found at import, before anything is claimed."""

    @pytest.mark.parametrize(
        "function", [nothing, takes_payload, takes_action, takes_both_by_name, takes_more_by_default]
    )
    def test_what_is_passed_by_name_may_be_asked_for(self, function: Callable[..., Any]) -> None:
        """``payload`` and ``action``, in any order, both optional; what has a default is left alone."""
        found = registered(function)

        arguments = found.arguments(action({"to": "ada"}))

        inspect.signature(function).bind(**arguments)
        assert set(arguments) == {"payload", "action"} & set(inspect.signature(function).parameters)

    @pytest.mark.parametrize(
        ("function", "told"),
        [
            (wants_more, "wants 'session'"),
            (wants_it_by_position, "'payload' by position only"),
            (yields, "is a generator"),
            (yields_asynchronously, "is a generator"),
        ],
    )
    @pytest.mark.parametrize("decorate", [lambda function: function, task], ids=["function", "task"])
    def test_what_can_not_be_called_is_refused(
        self, function: Callable[..., Any], told: str, decorate: Callable[..., Any]
    ) -> None:
        """At import: with the type and the place, so that it is found without a debugger."""
        with pytest.raises(RegistrationError) as refused:
            registered(decorate(function))

        for word in (told, "email.welcome", function.__qualname__, __file__):
            assert word in str(refused.value)


class TestPayloads:
    """The payload is validated to the annotation."""

    def test_model_is_built(self) -> None:
        """Defaults filled in, types converted as pydantic does it."""

        def greet(payload: Welcome) -> None: ...

        arguments = registered(greet).arguments(action({"to": "ada", "copies": "2"}))

        assert arguments == {"payload": Welcome(to="ada", copies=2)}

    def test_typed_dict_is_checked(self) -> None:
        """For those who want no classes."""

        def take(payload: Note) -> None: ...

        assert registered(take).arguments(action({"text": "x"})) == {"payload": {"text": "x"}}
        with pytest.raises(ValidationError, match="text"):
            registered(take).arguments(action({"level": 3}))

    def test_typed_mapping_is_checked(self) -> None:
        """The values of a ``dict[str, int]`` are integers."""

        def take(payload: dict[str, int]) -> None: ...

        assert registered(take).arguments(action({"a": 1})) == {"payload": {"a": 1}}
        with pytest.raises(ValidationError):
            registered(take).arguments(action({"a": "one"}))

    @pytest.mark.parametrize(
        "annotation", [dict, Mapping, Any, dict[str, Any], Mapping[str, Any], inspect.Parameter.empty]
    )
    def test_plain_dict_is_a_copy(self, annotation: Any) -> None:
        """Nothing to validate, and nothing is; what the function does to its dict does not reach the action."""

        def take(payload):  # type: ignore[no-untyped-def]
            payload["to"] = "eve"

        if annotation is not inspect.Parameter.empty:
            take.__annotations__["payload"] = annotation
        claimed = action({"to": "ada", "copies": ["bob"]})

        arguments = registered(take).arguments(claimed)
        take(**arguments)

        assert arguments["payload"] == {"to": "eve", "copies": ["bob"]}
        assert arguments["payload"]["copies"] is claimed.payload["copies"]
        assert claimed.payload == {"to": "ada", "copies": ["bob"]}

    def test_action_is_passed_as_it_is(self) -> None:
        """The action has the lease, so it must be the very one."""

        def take(action: Action) -> None: ...

        claimed = action({"to": "ada"})

        assert registered(take).arguments(claimed)["action"] is claimed

    def test_payload_that_does_not_fit_raises(self) -> None:
        """The guard turns it into a dead row; the loop never sees it."""

        def greet(payload: Welcome) -> None: ...

        with pytest.raises(ValidationError):
            registered(greet).arguments(action({"to": "ada", "copies": 0}))

    @pytest.mark.parametrize("annotation", ["NotThere", "Exception"])
    def test_annotation_that_can_not_be_validated_is_found_by_check(self, annotation: str) -> None:
        """A name hidden under ``TYPE_CHECKING``, a class that pydantic does not know.

        Found per row, it would send the backlog to dead.
        """

        def take(payload: Any) -> None: ...

        take.__annotations__["payload"] = annotation
        registry = Registry()
        processor("email.welcome", registry=registry)(take)

        with pytest.raises(RegistrationError) as refused:
            registry.check()

        for word in ("email.welcome", annotation, __file__):
            assert word in str(refused.value)

    @pytest.mark.parametrize("decorate", [task, flow])
    def test_annotations_of_tasks_and_flows_are_their_functions(self, decorate: Callable[..., Any]) -> None:
        """Prefect's wrappers must not hide what the author wrote."""

        def greet(payload: Welcome) -> None: ...

        assert registered(decorate(greet)).arguments(action({"to": "ada"})) == {"payload": Welcome(to="ada")}


class TestPolicies:
    """Durable retries: the processor's word, the settings' where it says nothing."""

    DEFAULT = RetryPolicy(max_attempts=7, backoff=timedelta(seconds=3), backoff_max=timedelta(seconds=30))

    def test_settings_decide_where_the_processor_is_silent(self) -> None:
        """One place for an operator to turn."""
        assert registered(nothing).policy(self.DEFAULT) == self.DEFAULT

    def test_processor_decides_what_it_names(self) -> None:
        """Each of the three by itself."""
        assert registered(nothing, max_attempts=1).policy(self.DEFAULT) == RetryPolicy(
            max_attempts=1, backoff=self.DEFAULT.backoff, backoff_max=self.DEFAULT.backoff_max
        )
        assert registered(nothing, backoff_max=timedelta(hours=2)).policy(self.DEFAULT).backoff_max == timedelta(
            hours=2
        )

    def test_no_wait_at_all_is_not_silence(self) -> None:
        """Zero is a wait that an author may want."""
        assert registered(nothing, backoff=timedelta(0)).policy(self.DEFAULT).backoff == timedelta(0)

    def test_facts_and_snooze_of_false_rules_are_kept(self) -> None:
        """What the guard asks for."""

        def facts(action: Action) -> dict[str, Any]:
            return {"id": action.id}

        found = registered(nothing, facts=facts, on_rules_false=Snooze(timedelta(minutes=1)))

        assert found.facts is facts
        assert found.on_rules_false == Snooze(timedelta(minutes=1))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"processors_{os.urandom(4).hex()}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


class TestLoading:
    """Modules of processors: one clear line when something is wrong with them."""

    def test_decorators_register_on_import(self, module: Callable[[str], str]) -> None:
        """Which is all that a module of processors has to do."""
        name = module("ready = True")

        load_modules((name,))
        load_modules((name,))

        assert sys.modules[name].ready

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
            ("def (", "SyntaxError"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("from prefect_claim_dispatch import no_such_name", "ImportError"),
        ],
    )
    def test_module_that_does_not_import_is_named(self, module: Callable[[str], str], source: str, told: str) -> None:
        """With the reason and what to look at; nothing has been claimed."""
        name = module(source)

        with pytest.raises(RegistrationError) as refused:
            load_modules((name,))

        for word in (name, told, "PYTHONPATH"):
            assert word in str(refused.value)
        assert refused.value.__cause__ is not None

    @pytest.mark.parametrize("name", ["no.such.module", "", ".", ".relative", "flows/claim.py"])
    def test_name_that_is_no_module_is_refused(self, name: str) -> None:
        """A path, an empty entry of a list: the same clear line, not a traceback."""
        with pytest.raises(RegistrationError, match="can't be imported"):
            load_modules((name,))

    def test_module_that_ends_the_process_is_refused(self, module: Callable[[str], str]) -> None:
        """A script without a ``__main__`` guard calls `sys.exit`: it must not end the claim flow without a word."""
        name = module("import sys; sys.exit(0)")

        with pytest.raises(RegistrationError, match="SystemExit"):
            load_modules((name,))

    def test_refused_registration_keeps_its_own_words(self, module: Callable[[str], str]) -> None:
        """It says already what is wrong and where; wrapping it would bury that."""
        name = module(
            "from prefect_claim_dispatch import processor\n@processor('')\ndef f(): ...\n",
        )

        with pytest.raises(RegistrationError, match="printable characters") as refused:
            load_modules((name,))

        assert "can't be imported" not in str(refused.value)

    def test_password_in_the_reason_is_not_shown(self, module: Callable[[str], str]) -> None:
        """A module that connects at import fails with its URL in the text, and the message goes into Prefect's log."""
        name = module("raise ConnectionError('postgresql://app:hunter2@db/app')")

        with pytest.raises(RegistrationError) as refused:
            load_modules((name,))

        assert "hunter2" not in str(refused.value)


def test_linger_that_makes_no_sense_is_refused() -> None:
    """It needs a number to wait for, and an end that a flow without a stay can wait for."""
    for rows in (None, "auto"):
        with pytest.raises(RegistrationError, match="linger waits for as many actions as fill a run"):
            registered(nothing, rows_per_run=rows, linger=timedelta(seconds=1))
    for linger in (timedelta(0), timedelta(seconds=-1), timedelta(seconds=61), 60.5, True, "1s"):
        with pytest.raises(RegistrationError, match=r"linger must be .*, above zero and 0:01:00 at most, got"):
            registered(nothing, rows_per_run=10, linger=linger)
    for linger in (timedelta(minutes=1), 60):
        assert registered(nothing, rows_per_run=10, linger=linger).linger == timedelta(minutes=1)


@pytest.mark.parametrize("rows", [0, -1, True, False, 1.5, "many", 10_001])
def test_rows_per_run_that_make_no_sense_are_refused(rows: Any) -> None:
    """At import: a batch of none would never be claimed, and True is no number of rows."""
    with pytest.raises(RegistrationError, match=r"rows_per_run must be 1 to 10000, or 'auto'"):
        registered(nothing, rows_per_run=rows)


def test_rows_together_need_a_batch_and_a_shape_of_their_own() -> None:
    """Mixed shapes can't be called, and without a batch there is nothing to be taken together."""

    def together(payloads: list[Welcome]) -> None: ...

    def mixed(payload: Welcome, actions: list[Action]) -> None: ...

    def greedy(payloads: list[Welcome], connection: object) -> None: ...

    with pytest.raises(RegistrationError, match="takes rows together; say rows_per_run"):
        registered(together)
    with pytest.raises(RegistrationError, match="takes 'payload' beside rows together"):
        registered(mixed, rows_per_run=10)
    with pytest.raises(RegistrationError, match="wants 'connection'; only 'payloads' and 'actions' are passed"):
        registered(greedy, rows_per_run=10)
    with pytest.raises(RegistrationError, match="a child process takes one"):
        registered(together, rows_per_run=10, isolate=True)
    with pytest.raises(RegistrationError, match="rows_per_run is for a function or a task"):
        registered(flow(nothing), rows_per_run=10)


@pytest.mark.parametrize("annotation", [list[Welcome], "list[Welcome]", Sequence[Welcome]])
def test_rows_taken_together_are_validated_each_by_itself(annotation: Any) -> None:
    """To what the list is of: a row that does not fit must not spoil the call for the others."""

    def load(payloads: Any, actions: Sequence[Action]) -> None: ...

    load.__annotations__["payloads"] = annotation
    known = registered(load, rows_per_run=10)
    known.check()

    share = known.arguments(action({"to": "a"}))

    assert share["payloads"] == Welcome(to="a")
    assert share["actions"].id == 42
    with pytest.raises(ValidationError):
        known.arguments(action({"copies": 1}))


def test_rows_taken_together_without_a_class_are_plain_dicts() -> None:
    """As a payload without an annotation is."""

    def load(payloads: list) -> None: ...  # type: ignore[type-arg]

    known = registered(load, rows_per_run=10)
    known.check()

    assert known.arguments(action({"to": "a"})) == {"payloads": {"to": "a"}}


def test_rows_taken_together_as_no_list_are_refused() -> None:
    """`payloads: Welcome` would validate each row and pass a list all the same."""

    def load(payloads: Welcome) -> None: ...

    with pytest.raises(RegistrationError, match=r"annotate it as list\[\.\.\.\] or Sequence"):
        registered(load, rows_per_run=10).check()


@pytest.mark.parametrize(
    ("asked", "names"),
    [(None, ()), ("db", ("db",)), (["b", "a", "b"], ("a", "b")), (("a",), ("a",))],
    ids=str,
)
def test_concurrency_limits_are_asked_for_in_one_order(asked: Any, names: tuple[str, ...]) -> None:
    """Two processors that want the same two in different orders would each hold what the other waits for."""
    assert registered(nothing, concurrency_limit=asked).concurrency_limits == names


@pytest.mark.parametrize("asked", ["", "  ", [], ["a", ""], [None], [3]], ids=repr)
def test_concurrency_limit_without_a_name_is_refused(asked: Any) -> None:
    """It would limit nothing, and look as if it did."""
    with pytest.raises(RegistrationError, match="concurrency_limit must be the name of a limit"):
        registered(nothing, concurrency_limit=asked)
