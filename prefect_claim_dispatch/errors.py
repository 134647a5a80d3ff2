"""Every error that this package raises on purpose.

    ClaimDispatchError
    ├── InvalidActionError          a draft that may not reach the table (also ValueError)
    │   ├── InvalidTypeError        the routing key is empty, too long or has control characters
    │   ├── InvalidPayloadError     the payload is no JSON object that both databases can hold
    │   ├── InvalidInstantError     a naive, infinite or contradictory end_at / delay
    │   ├── InvalidKeyError         an idempotency or ordering key that cannot be stored
    │   └── InvalidRulesError       a rule that does not compile
    │       └── RulesUnansweredError    the machine gave rules no time: ask again
    ├── DuplicateActionError        on_conflict="raise" met an existing action
    ├── ActionNotFoundError         no row has that id
    ├── LostLeaseError              the claim is no longer held: somebody else may have the action
    │   └── ClaimLostError          it was not held any more when its run began: nothing was done
    ├── RegistrationError           a processor that cannot be registered or loaded
    ├── ConfigurationError          settings or arguments that make no sense (also ValueError)
    │   └── MissingExtraError       an optional dependency is not installed
    ├── DeploymentNotFoundError     no deployment has that name: its actions wait
    ├── PrefectUnavailableError     the Prefect API cannot be reached: nothing was claimed
    ├── FlowStoppedError            somebody has ended the claim flow's run in Prefect
    ├── KeeperDiedError             the thread that settles and renews has died: nothing is written any more
    ├── UnexpectedActionsError      assert_published found something else (also AssertionError)
    ├── EndlessDrainError           drain claimed and claimed, and actions were still due
    └── DatabaseError               the database cannot serve us
        ├── DatabaseUnavailableError
        │   └── DatabaseContendedError  other transactions were in the way
        ├── SchemaMissingError      the table is not there
        └── SchemaVersionError      the table was migrated by a newer version of this package

Each message says what, which, got and the remedy. All of them pickle, because Prefect ships errors between processes:
attributes are kept in ``args`` order by :class:`ClaimDispatchError`.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[ClaimDispatchError], message: str, attributes: dict[str, Any]) -> ClaimDispatchError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class ClaimDispatchError(Exception):
    """Base of every error of this package; carries its facts as attributes and pickles."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class InvalidActionError(ClaimDispatchError, ValueError):
    """A draft was refused before any SQL was sent; nothing was written."""


class InvalidTypeError(InvalidActionError):
    """The action type is not text of 1 to 120 printable characters."""


class InvalidPayloadError(InvalidActionError):
    """The payload (or meta) is not a JSON object that SQLite and PostgreSQL store alike."""


class InvalidInstantError(InvalidActionError):
    """``end_at`` or ``delay`` is naive, infinite, negative, out of range, or both were given."""


class InvalidKeyError(InvalidActionError):
    """An idempotency or ordering key is empty, too long or holds a character no database takes."""


class InvalidRulesError(InvalidActionError):
    """The rules are not a JSONLogic expression that compiles."""


class RulesUnansweredError(InvalidRulesError):
    """Rules were not evaluated, since this machine had no time or memory for them now; they may be right."""


class DuplicateActionError(ClaimDispatchError):
    """An action of that type already holds the idempotency key; see ``existing_id``."""

    def __init__(self, type_: str, idempotency_key: str, existing_id: int) -> None:
        super().__init__(
            f"action {type_!r} with idempotency key {idempotency_key!r} exists already as #{existing_id}; "
            "use on_conflict='keep' to accept the existing one"
        )
        self.type = type_
        self.idempotency_key = idempotency_key
        self.existing_id = existing_id


class ActionNotFoundError(ClaimDispatchError):
    """No action has that id in this table."""

    def __init__(self, action_id: int, table: str) -> None:
        super().__init__(f"no action #{action_id} in {table}; it may have been pruned")
        self.action_id = action_id
        self.table = table


class LostLeaseError(ClaimDispatchError):
    """The claim is not held any more; roll back, and let whoever holds it do the work."""

    def __init__(self, action_id: int, claim_count: int) -> None:
        super().__init__(
            f"claim {claim_count} on action #{action_id} is not held any more; roll back what belongs to it"
        )
        self.action_id = action_id
        self.claim_count = claim_count


class ClaimLostError(LostLeaseError):
    """A deployment's run came too late, or a second time: its claim is not held any more, and nothing was begun."""

    def __init__(self, action_id: int, claim_count: int, table: str) -> None:
        ClaimDispatchError.__init__(
            self,
            f"claim {claim_count} on action #{action_id} of {table} is not this run's to work on any more: it was "
            "settled, released or given to another run; nothing was begun, and there is nothing to do",
        )
        self.action_id = action_id
        self.claim_count = claim_count
        self.table = table


class DeploymentNotFoundError(ClaimDispatchError):
    """No deployment has that name; actions of its types wait until there is one."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no deployment is called {name!r}; deploy it, or correct its name (flow/deployment): "
            "its actions wait, and cost no attempt"
        )
        self.name = name


class RegistrationError(ClaimDispatchError):
    """A processor cannot be registered, or a module of processors cannot be imported."""


class ConfigurationError(ClaimDispatchError, ValueError):
    """A setting or an argument makes no sense; the message names it and says what would."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is missing; the message says what to install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'prefect-claim-dispatch[{extra}]'")
        self.extra = extra


def comes_with_prefect(error: ModuleNotFoundError) -> bool:
    """Whether what is missing is what the extra ``prefect`` installs."""
    # httpx, of Prefect's client, may be the first that is missed.
    return (error.name or "").partition(".")[0] in {"prefect", "httpx"}


class PrefectUnavailableError(ClaimDispatchError):
    """The Prefect API can't be reached or refuses us; nothing was claimed."""


class FlowStoppedError(ClaimDispatchError):
    """Somebody has suspended, ended or deleted the claim flow's run in Prefect; what had not begun was given back."""


class KeeperDiedError(ClaimDispatchError):
    """The thread that renews leases and writes verdicts has died; the run ends, and its claims are rescued."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the thread that renews leases and writes verdicts has died of {reason}; what was begun and is not "
            "settled is rescued when its lease is over, and done again. The log has the traceback: please report it"
        )
        self.reason = reason


class UnexpectedActionsError(ClaimDispatchError, AssertionError):
    """The actions in the table are not those that a test expects; the message shows what is there instead."""


class EndlessDrainError(ClaimDispatchError):
    """Actions were still due after as many claims as a drain makes; what was settled until then stays settled."""

    def __init__(self, claims: int, type_: str, of_type: int) -> None:
        super().__init__(
            f"actions are still due after {claims:,} claims, {of_type:,} of them of {type_!r}; does its processor "
            "snooze for no time, or publish its own successor? Otherwise give drain a higher limit"
        )
        self.claims = claims
        self.type = type_
        self.of_type = of_type


class DatabaseError(ClaimDispatchError):
    """The database cannot serve the request; nothing was claimed by it."""


class DatabaseUnavailableError(DatabaseError):
    """No connection could be made, or it broke."""


class DatabaseContendedError(DatabaseUnavailableError):
    """A deadlock, a serialization failure or a lock timeout: nothing was written, and the same again may succeed."""


class SchemaMissingError(DatabaseError):
    """The action table does not exist where the settings say."""


class SchemaVersionError(DatabaseError):
    """The table was migrated by a newer version of this package; upgrade the package first."""
