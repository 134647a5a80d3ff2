# pyright: strict
"""What a type checker says of `action_type`. ``# error: RULE`` marks a line that must be refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, assert_type

from pydantic import BaseModel

from prefect_claim_dispatch import action_type


@action_type("email.welcome")
class Welcome(BaseModel):
    to: str


@action_type("invoice.send")
@action_type("invoice.remind")
@dataclass
class Invoice:
    number: int


@action_type("note.added")
class Note(TypedDict):
    text: str


class Plain:
    pass


# The decorated class is the class: its constructor and members as they were.
assert_type(Welcome, type[Welcome])
assert_type(Welcome(to="ada").to, str)
assert_type(Invoice(number=7).number, int)
assert_type(Note(text="x")["text"], str)
Welcome(too="ada")  # error: reportCallIssue
Invoice(number="7")  # error: reportArgumentType

# As a call, too.
assert_type(action_type("a", Welcome), type[Welcome])
assert_type(action_type("a", Invoice), type[Invoice])
assert_type(action_type("a", Note), type[Note])
action_type("a", int)  # error: reportArgumentType
action_type("a", Plain)  # error: reportArgumentType
action_type("a", Welcome(to="ada"))  # error: reportArgumentType
action_type(7, Welcome)  # error: reportArgumentType
action_type(Welcome)  # error: reportArgumentType
action_type(name="a", payload_class=Welcome)  # error: reportCallIssue
