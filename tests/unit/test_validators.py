"""Which payloads pydantic validates all by itself, and which call code of the author's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    WrapValidator,
    field_validator,
    model_validator,
)

from prefect_claim_dispatch.payloads import has_functions


class Colour(StrEnum):
    RED = "red"


class Quick(BaseModel):
    """What pydantic validates all by itself."""

    to: str
    count: Annotated[int, Field(gt=0, le=10)] = 1
    at: datetime | None = None
    id: UUID
    price: Decimal
    path: Path
    host: IPv4Address
    secret: SecretStr
    tags: list[str] = Field(default_factory=list)
    inner: Quick | None = None


def slowly(value: Any) -> Any:
    return value


class FieldValidator(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def look(cls, value: int) -> int:
        return value


class ModelValidator(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def look(cls, value: Any) -> Any:
        return value


class PostInit(BaseModel):
    def model_post_init(self, context: Any, /) -> None: ...


class OwnInit(BaseModel):
    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class Nested(BaseModel):
    several: dict[str, list[FieldValidator | None]]


class Factory(BaseModel):
    x: int = Field(default_factory=lambda: 1)


@dataclass
class PostInitialised:
    x: int

    def __post_init__(self) -> None: ...


@pytest.mark.parametrize("annotation", [Quick, dict[str, int], list[Quick], str, Colour])
def test_what_pydantic_validates_by_itself_calls_nobody(annotation: Any) -> None:
    """Such rows are guarded where they are claimed: no thread is needed for microseconds."""
    assert not has_functions(TypeAdapter(annotation))


@pytest.mark.parametrize(
    "annotation",
    [
        *(FieldValidator, ModelValidator, PostInit, OwnInit, Nested, Factory, PostInitialised),
        *(Annotated[int, AfterValidator(slowly)], Annotated[int, BeforeValidator(partial(slowly))]),
        *(Annotated[int, WrapValidator(lambda value, handler: handler(value))], Annotated[int, PlainValidator(slowly)]),
    ],
)
def test_validators_of_the_author_are_seen(annotation: Any) -> None:
    """One that sleeps, or asks another service, must hold up nobody else's rows."""
    assert has_functions(TypeAdapter(annotation))
