"""The catalogue of action types: what may be registered, what a payload must be, and what its JSON Schema says."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

import jsonschema
import pytest
from prefect import task
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from prefect_claim_dispatch import Draft, action_type, publish_sql
from prefect_claim_dispatch.catalogue import Catalogue, Entry, catalogue
from prefect_claim_dispatch.errors import ConfigurationError, InvalidPayloadError, RegistrationError
from prefect_claim_dispatch.processors import Processor, Registry, processor
from tests.unit.test_processors import action

pytestmark = pytest.mark.usefixtures("empty_catalogue")

SECRET = "hunter2"


class Address(BaseModel):
    city: str
    code: str | None = None


class Welcome(BaseModel):
    to: str
    copies: int = Field(default=1, ge=1)
    address: Address | None = None


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: int = Field(alias="userId")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    id: UUID
    sizes: tuple[int, ...]


@dataclass
class Invoice:
    total: Decimal
    paid: bool = False


class Note(TypedDict):
    text: str
    level: NotRequired[int]


class Incomplete(BaseModel):
    it: NeverDefined  # noqa: F821


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def quoting(value: str) -> str:
    msg = f"{value} is not allowed"
    raise ValueError(msg)


def quoting_in_its_own_kind(value: str) -> str:
    raise PydanticCustomError("not_allowed", "{value} is not allowed", {"value": value})


def breaking(value: str) -> str:
    raise LookupError(value)


class Talkative(BaseModel):
    """Each field is of a kind whose error quotes what it was given."""

    id: UUID | None = None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    said: Annotated[str, AfterValidator(quoting)] | None = None
    told: Annotated[str, AfterValidator(quoting_in_its_own_kind)] | None = None
    broken: Annotated[str, AfterValidator(breaking)] | None = None
    number: Literal[1, 2] = 1
    short: str = Field(default="", max_length=3)


class Unknown:
    """Nothing that pydantic knows."""


class Holder(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    it: Unknown


def commit(type_: str, payload: Any) -> None:
    """What every publish does before any SQL."""
    publish_sql(Draft().payload(payload).type(type_), "sqlite")


class TestRegistering:
    """What `action_type` takes and gives back."""

    @pytest.mark.parametrize("payload_class", [Welcome, Invoice, Note, Tree, RootModel[dict[str, int]]])
    def test_class_comes_back_unchanged_from_both_forms(self, payload_class: type[Any]) -> None:
        """It is the author's class, whatever we know about it."""
        assert action_type("by.call", payload_class) is payload_class
        assert action_type("by.decorator")(payload_class) is payload_class

        assert catalogue.types == ("by.call", "by.decorator")
        assert {catalogue[type_].payload_class for type_ in catalogue.types} == {payload_class}

    def test_second_class_for_a_type_is_refused_with_both_places(self) -> None:
        """Two teams that picked one name must hear of each other, and not overwrite each other."""
        action_type("email.welcome", Welcome)

        with pytest.raises(RegistrationError) as refused:
            action_type("email.welcome", Invoice)

        told = str(refused.value)
        assert all(word in told for word in ("email.welcome", "test_catalogue.Welcome", "test_catalogue.Invoice"))
        assert told.count(__file__) == 2
        assert catalogue["email.welcome"].payload_class is Welcome

    def test_class_replaces_itself_after_a_reload(self) -> None:
        """`importlib.reload` in a notebook makes the same class anew; the new one is what the author wants."""

        def load() -> type[BaseModel]:
            @action_type("email.reload")
            class Reloaded(BaseModel):
                to: str

            return Reloaded

        load()

        assert catalogue["email.reload"].payload_class is not load() is catalogue["email.reload"].payload_class

    @pytest.mark.parametrize("type_", ["report.*", "report.?", "report.[a-z]", "", " a", "a\n", "a" * 121, 7, None])
    def test_pattern_or_malformed_type_is_refused(self, type_: Any) -> None:
        """No action could ever be published with it."""
        with pytest.raises(RegistrationError):
            action_type(type_, Welcome)

        assert catalogue.types == ()

    @pytest.mark.parametrize("payload_class", [int, dict, Unknown, "Welcome", Welcome(to="a"), list[int], lambda: None])
    def test_what_describes_no_object_is_refused(self, payload_class: Any) -> None:
        """With the type, what it is and where it was said."""
        with pytest.raises(RegistrationError) as refused:
            action_type("email.welcome", payload_class)

        assert "wants a pydantic model, a dataclass or a TypedDict" in str(refused.value)
        assert __file__ in str(refused.value)

    def test_class_that_pydantic_can_not_use_is_refused_when_it_is_wanted(self) -> None:
        """A name that is missing at registration may come later; one that never comes is no fault of the payload."""
        action_type("email.incomplete", Incomplete)

        with pytest.raises(RegistrationError) as refused:
            commit("email.incomplete", {"it": 1})

        assert all(word in str(refused.value) for word in ("email.incomplete", "Incomplete", __file__))
        assert "\n" not in str(refused.value)

    def test_class_without_a_json_schema_is_refused_when_that_is_asked_for(self) -> None:
        """It can still be published."""
        entry = Entry(type="hold", payload_class=Holder, place="here:1")

        with pytest.raises(RegistrationError, match="here:1"):
            entry.json_schema()

    def test_type_that_is_not_there_is_told_with_those_that_are(self) -> None:
        """A typo is seen at once."""
        action_type("email.welcome", Welcome)

        with pytest.raises(ConfigurationError, match=r"'email' is not in the catalogue, which has email\.welcome"):
            catalogue["email"]


FITTING = [
    (Welcome, {"to": "ada"}),
    (Welcome, {"to": "ada", "copies": 2, "address": {"city": "Paris"}, "more": True}),
    (Welcome, Welcome(to="ada", address=Address(city="Paris"))),
    (Welcome, {"to": "ada", "address": Address(city="Paris")}),
    (Aliased, {"userId": 7}),
    (Aliased, Aliased(userId=7)),
    (Strict, Strict(at=datetime.fromisoformat("2026-01-31T12:00:00+01:00"), id=UUID(int=7), sizes=(1, 2))),
    (Invoice, Invoice(total=Decimal("12.50"))),
    (Invoice, {"total": Decimal("12.50"), "paid": True}),
    (Note, {"text": "x"}),
    (Tree, Tree(name="a", children=[Tree(name="b")])),
    (RootModel[dict[str, int]], {"a": 1}),
]


class TestPublishing:
    """A payload that its class can't read back reaches no table."""

    @pytest.mark.parametrize(("payload_class", "payload"), FITTING)
    def test_what_fits_is_published_and_the_processor_reads_it(self, payload_class: Any, payload: Any) -> None:
        """The class's own instance above all: what publish accepts must be what dispatch accepts."""

        def read(payload): ...  # type: ignore[no-untyped-def]

        action_type("email.welcome", payload_class)

        _, (_, stored, *_) = publish_sql(Draft().type("email.welcome").payload(payload), "sqlite", "qmark")

        arguments = processor_of("email.*", read).arguments(action(json.loads(stored)))
        assert arguments["payload"] == catalogue["email.welcome"].adapter.validate_json(stored)
        assert type(payload) is dict or arguments["payload"] == payload

    @pytest.mark.parametrize(("payload_class", "payload"), FITTING)
    def test_exported_schema_accepts_what_publish_accepts(self, payload_class: Any, payload: Any) -> None:
        """A publisher in another language that follows it must not be told otherwise by the processor."""
        action_type("t", payload_class)
        _, (_, stored, *_) = publish_sql(Draft().type("t").payload(payload), "sqlite", "qmark")

        jsonschema.Draft202012Validator(catalogue["t"].json_schema()).validate(json.loads(stored))

    @pytest.mark.parametrize(
        ("payload_class", "payload", "told"),
        [
            (Welcome, {}, "to: Field required"),
            (Welcome, {"to": "ada", "copies": 0}, "copies: Input should be greater than or equal to 1"),
            (Welcome, {"to": "ada", "address": {}}, "address.city: Field required"),
            (Welcome, Welcome.model_construct(to=None), "to: Input should be a valid string"),
            (Welcome, Address(city="Paris"), "to: Field required"),
            (Aliased, {"user_id": 7}, "userId: Field required; user_id: Extra inputs are not permitted"),
            (Invoice, {"total": SECRET}, "total: Input should be a valid decimal"),
            (Note, {"level": 1}, "text: Field required"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_field(self, payload_class: Any, payload: Any, told: str) -> None:
        """Where it can be mended, in the publisher, instead of in a dead row next morning."""
        action_type("t", payload_class)

        with pytest.raises(InvalidPayloadError) as refused:
            commit("t", payload)

        assert told in str(refused.value)
        assert payload_class.__qualname__ in str(refused.value)
        assert SECRET not in str(refused.value)

    def test_instance_that_was_changed_is_validated_as_it_will_be_stored(self) -> None:
        """Pydantic does not look again when an attribute is set."""
        action_type("t", Welcome)
        payload = Welcome(to="ada")
        payload.copies = 0

        with pytest.raises(InvalidPayloadError, match="copies"):
            commit("t", payload)

    @pytest.mark.parametrize(
        ("payload", "told"),
        [
            ({"id": SECRET}, "id: Input should be a valid UUID;"),
            ({"pet": {"kind": SECRET}}, "pet: 'kind' should be one of 'cat', 'dog'"),
            ({"said": SECRET}, "said: refused by a validator (value_error)"),
            ({"told": SECRET}, "told: refused by a validator (not_allowed)"),
            ({"broken": SECRET}, "validation raised LookupError"),
            ({"number": SECRET}, "number: Input should be 1 or 2"),
            ({"short": SECRET}, "short: String should have at most 3 characters"),
        ],
    )
    def test_no_value_is_shown(self, payload: dict[str, Any], told: str) -> None:
        """Errors go to logs and trackers that payloads never reach; nor does the exception behind them."""
        action_type("t", Talkative)

        with pytest.raises(InvalidPayloadError) as refused:
            commit("t", payload)

        assert told in str(refused.value)
        assert SECRET not in str(refused.value)
        assert refused.value.__context__ is None
        assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)

    def test_many_problems_are_counted_and_long_names_are_cut(self) -> None:
        """A payload of a thousand wrong members must not make a message of a megabyte."""
        action_type("t", RootModel[dict[str, int]])

        with pytest.raises(InvalidPayloadError) as refused:
            commit("t", {"x" * 5000 + str(number): "a" for number in range(8)} | {"\x1b": "a"})

        assert "(and 4 more)" in str(refused.value)
        assert len(str(refused.value)) < 1000

    def test_setters_come_in_any_order_and_a_draft_may_be_unfinished(self) -> None:
        """A template that many share has the type, and no payload yet."""
        action_type("t", Welcome)

        template = Draft().type("t")

        for draft in (template.payload({"to": "ada"}), Draft().payload({"to": "ada"}).type("t")):
            publish_sql(draft, "sqlite")
        for draft in (template, Draft().payload({}).type("t")):
            with pytest.raises(InvalidPayloadError):
                publish_sql(draft, "sqlite")

    def test_rules_and_meta_are_no_part_of_what_is_validated(self) -> None:
        """A class that forbids extra members never sees our reserved keys, at publish as at dispatch."""
        action_type("t", Aliased)

        publish_sql(Draft().type("t").payload({"userId": 7}).meta(a=1).rules({"var": "payload.userId"}), "sqlite")

    def test_type_that_is_not_in_the_catalogue_is_published_as_before(self) -> None:
        """The catalogue is optional, type by type."""
        action_type("t", Welcome)

        commit("t.other", {"anything": 1})


def processor_of(type_: str, function: Any) -> Processor:
    registry = Registry()
    processor(type_, registry=registry)(function)
    registry.check()
    found = registry.match(type_)
    assert found is not None
    return found


class TestProcessors:
    """A processor that says nothing of its payload gets what the catalogue says."""

    @pytest.mark.parametrize("decorate", [lambda function: function, task], ids=["function", "task"])
    def test_payload_without_annotation_is_of_the_catalogues_class(self, decorate: Any) -> None:
        """Also when the class is registered after the processor."""

        def greet(payload): ...  # type: ignore[no-untyped-def]

        found = processor_of("email.welcome", decorate(greet))
        action_type("email.welcome", Welcome)

        assert found.arguments(action({"to": "ada"}))["payload"] == Welcome(to="ada")

    def test_pattern_finds_the_class_of_each_type(self) -> None:
        """One processor for `email.*` may get a different class for every type."""

        def greet(payload): ...  # type: ignore[no-untyped-def]

        found = processor_of("*", greet)
        action_type("email.welcome", Welcome)

        assert found.arguments(action({"to": "ada"}))["payload"] == Welcome(to="ada")
        catalogue._entries.clear()
        assert found.arguments(action({"to": "ada"}))["payload"] == {"to": "ada"}

    @pytest.mark.parametrize(("annotation", "payload"), [(dict, {"to": 1}), (Note, {"text": "a"}), (Any, {"to": 1})])
    def test_annotation_wins(self, annotation: Any, payload: dict[str, Any]) -> None:
        """What stands in the function is what its reader sees; `dict` means a dict."""

        def greet(payload): ...  # type: ignore[no-untyped-def]

        greet.__annotations__["payload"] = annotation
        action_type("email.welcome", Welcome)

        assert processor_of("email.welcome", greet).arguments(action(payload))["payload"] == payload

    @pytest.mark.parametrize("pattern", ["email.welcome", "email.*"])
    def test_class_that_can_not_be_used_is_found_by_check(self, pattern: str) -> None:
        """Found per row, it would send the backlog to dead."""

        def greet(payload): ...  # type: ignore[no-untyped-def]

        action_type("email.welcome", Incomplete)

        with pytest.raises(RegistrationError, match="Incomplete"):
            processor_of(pattern, greet)

    def test_processor_that_takes_no_payload_needs_no_class(self) -> None:
        """Nor do types that it has nothing to do with."""

        def tick() -> None: ...

        def greet(payload): ...  # type: ignore[no-untyped-def]

        action_type("email.welcome", Incomplete)

        assert processor_of("email.welcome", tick).arguments(action({})) == {}
        assert processor_of("report.*", greet)

    def test_strict_class_reads_what_its_own_instance_wrote(self) -> None:
        """Stored payloads are JSON: there, text is how an instant is written, and no lax conversion."""

        def read(payload: Strict) -> None: ...

        stored = {"at": "2026-01-31T12:00:00Z", "id": str(UUID(int=7)), "sizes": [1, 2]}

        payload = processor_of("t", read).arguments(action(stored))["payload"]

        assert payload == Strict.model_validate_json(json.dumps(stored))


def test_catalogues_are_listed_sorted() -> None:
    """What is exported must not depend on the order of imports."""
    mine = Catalogue()
    for type_ in ("b", "a.b", "a"):
        mine.add(Entry(type=type_, payload_class=Welcome, place="here:1"))

    assert mine.types == ("a", "a.b", "b")
    assert mine.matching("a*") == ("a", "a.b")
