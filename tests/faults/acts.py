"""Every act of the package that sends statements, prepared on a table and done once, with what happened noted down.

Each is one transaction, but for those that say otherwise. `tests.faults.matrix` strikes each of their statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine

from prefect_claim_dispatch import (
    Draft,
    claiming,
    fetching,
    hot_keys,
    limiting,
    operations,
    outstanding,
    publish,
    publish_many,
    refusals,
)
from prefect_claim_dispatch.claiming import RawAction
from prefect_claim_dispatch.diagnosing import asking
from prefect_claim_dispatch.listening import prove
from prefect_claim_dispatch.outcomes import Failed, Outcome, Processed, Released, Snooze, Unprocessable
from prefect_claim_dispatch.outstanding import Followed
from prefect_claim_dispatch.policies import RetryPolicy
from prefect_claim_dispatch.rescuing import release_unheard, rescue
from prefect_claim_dispatch.settling import recognise, settle, settle_action
from prefect_claim_dispatch.statements import diagnose
from prefect_claim_dispatch.statements.claim import candidates, claim_one
from tests.kit.ledger import Ledger, PublishLog
from tests.kit.tables import TABLE, change, claim_due, expire_leases, make_due, seconds_from_now, verdicts

AT_ONCE: Final = RetryPolicy(backoff=timedelta(0))
TYPE, BYSTANDER, PAUSED = "a", "b", "elsewhere.*"
HOLDER = "the-one-that-dies"


@dataclass(frozen=True, slots=True)
class Scene:
    """Where an act is done: the table, and the two records beside it."""

    engine: Engine
    ledger: Ledger
    published: PublishLog

    def publish(self, *keys: str | None, type_: str = TYPE, **options: Any) -> list[int]:
        """Publish one by one, through the engine, each asked for and answered in the publish log."""
        return [self.noted([key], lambda key=key: [self._publish(type_, key, options)], type_)[0] for key in keys]

    def _publish(self, type_: str, key: str | None, options: dict[str, Any]) -> Any:
        return publish(self.engine, type_, {"key": key}, idempotency_key=key, **options)

    def noted(self, keys: Sequence[str | None], do: Callable[[], Iterable[Any]], type_: str = TYPE) -> list[int]:
        """What *do* publishes under *keys*: asked before; answered only if it comes back."""
        tokens = [self.published.asked(type_, key) for key in keys]
        receipts = list(do())
        for token, key, receipt in zip(tokens, keys, receipts, strict=True):
            self.published.published(token, receipt, type_, key)
        return [receipt.id or 0 for receipt in receipts]

    def claim(self, *types: str) -> list[RawAction]:
        """Claim what is due of *types*, all types unless given."""
        sent_at = time.monotonic()
        raws = claim_due(self.engine, *types, claimed_by=HOLDER)
        self.ledger.claimed(raws, sent_at=sent_at)
        return raws

    def settle(self, raws: Sequence[RawAction], outcome: Outcome) -> None:
        """Write *outcome*, and note what the table took."""
        settlements = verdicts(outcome, raws, AT_ONCE)
        sent_at = time.monotonic()
        taken = settle(self.engine, TABLE, settlements, {raw.id: f"run-{raw.id}" for raw in raws})
        for raw, settlement in zip(raws, settlements, strict=True):
            if raw.id in taken:
                self.ledger.accepted(raw, settlement.status.value, sent_at=sent_at)

    def work(self, raws: Sequence[RawAction], outcome: str = "processed") -> list[RawAction]:
        """Execute: each begins and comes to *outcome*."""
        for raw in raws:
            self.ledger.begin(raw)
            self.ledger.end(raw, outcome)
        return list(raws)

    def drain(self) -> None:
        """What healthy claim flows do until nothing is due: rescue what died, claim, execute, settle."""
        expire_leases(self.engine, *operations.find_ids(self.engine, status="claimed"))
        rescue(self.engine, TABLE, lambda _: AT_ONCE, limit=100)
        make_due(self.engine, *operations.find_ids(self.engine, status="pending"))
        self.settle(self.work(self.claim()), Processed())


Prepare = Callable[[Scene], Any]
Do = Callable[[Scene, Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """*do* is done on what *prepare* made. *statements*: the named ones that it sends, in order, by dialect.

    *changes*: whether it writes; *commits_each*: on PostgreSQL each statement stands alone, so no COMMIT is sent;
    *again*: the one who asked does it again after a fault, because the key makes that safe.
    """

    prepare: Prepare
    do: Do
    postgresql: tuple[str, ...]
    sqlite: tuple[str, ...]
    changes: bool = True
    commits_each: bool = False
    again: bool = False

    def statements(self, dialect: str) -> tuple[str, ...]:
        """The names of the statements that it sends there."""
        return self.sqlite if dialect == "sqlite" else self.postgresql


def _act(prepare: Prepare, do: Do, *statements: str, sqlite: tuple[str, ...] | None = None, **facts: Any) -> Act:
    return Act(prepare=prepare, do=do, postgresql=statements, sqlite=statements if sqlite is None else sqlite, **facts)


def _nothing(_scene: Scene) -> None: ...


def _two_due(scene: Scene) -> list[int]:
    return scene.publish(None, "key")


def _two_claimed(scene: Scene) -> list[RawAction]:
    _two_due(scene)
    return scene.claim(TYPE)


def _two_executed(scene: Scene) -> list[RawAction]:
    return scene.work(_two_claimed(scene))


def _two_failed(scene: Scene) -> list[RawAction]:
    return scene.work(_two_claimed(scene), "failed")


def _two_snoozed(scene: Scene) -> list[RawAction]:
    return scene.work(_two_claimed(scene), "snoozed")


def _two_over(scene: Scene) -> list[RawAction]:
    raws = _two_claimed(scene)
    for raw in raws:
        scene.ledger.begin(raw)
    expire_leases(scene.engine, *(raw.id for raw in raws))
    return raws


def _two_settled(scene: Scene) -> list[tuple[int, int]]:
    raws = _two_executed(scene)
    scene.settle(raws, Processed())
    return _keys(raws)


def _two_cancelled(scene: Scene) -> list[int]:
    return operations.cancel(scene.engine, _two_due(scene))


def _two_old(scene: Scene) -> list[int]:
    raws = _two_executed(scene)
    scene.settle(raws, Processed())
    change(scene.engine, *(raw.id for raw in raws), settled_at=seconds_from_now(-3600))
    return [raw.id for raw in raws]


def _holders(scene: Scene) -> list[int]:
    return scene.publish("k1", "k2", delay=timedelta(hours=1))


def _drafts(*keys: str | None, on_conflict: Any = "keep") -> list[Draft]:
    drafts = [Draft().type(TYPE).payload({"key": key, "again": True}) for key in keys]
    return [
        draft if key is None else draft.idempotency(key).on_conflict(on_conflict)
        for key, draft in zip(keys, drafts, strict=True)
    ]


def _publish_many(scene: Scene, *keys: str | None, on_conflict: Any = "keep") -> None:
    scene.noted(keys, lambda: publish_many(scene.engine, _drafts(*keys, on_conflict=on_conflict)))


def _publish_in_own_transaction(scene: Scene, _: Any) -> None:
    """In the caller's: what is acknowledged is the caller's commit."""

    def both() -> list[Any]:
        with scene.engine.begin() as connection:
            return publish_many(connection, _drafts("k1", None))

    scene.noted(["k1", None], both)


def _publish_by_url(scene: Scene, _: Any) -> None:
    url = scene.engine.url.render_as_string(hide_password=False)
    scene.noted([None], lambda: [publish(url, TYPE, {"key": None})])


def _claim(scene: Scene, lanes: Any, **options: Any) -> None:
    sent_at, lease = time.monotonic(), timedelta(minutes=5)
    raws = claiming.claim(scene.engine, TABLE, lanes, limit=10, lease=lease, claimed_by=HOLDER, **options)
    scene.ledger.claimed(raws, sent_at=sent_at)


def _claim_limited(scene: Scene, lanes: Any) -> None:
    _claim(scene, lanes, max_running=2)


def _claim_suspects(scene: Scene, lanes: Any) -> None:
    _claim(scene, lanes, kept_waiting=list)


def _claim_beside_keys(scene: Scene, lanes: Any) -> None:
    """It brings less than it might, so that it looks whether it has left out something."""
    hot_keys._memories.clear()
    _claim(scene, lanes)


def _claim_behind_keys(scene: Scene, lanes: Any) -> None:
    """As if most of what is due waited for ordering keys."""
    memory = hot_keys._Memory(thick={(lane.type, lane.priority): (float("inf"), True) for lane in lanes})
    hot_keys._memories[scene.engine] = {TABLE: memory}
    _claim(scene, lanes)


def _look_for_candidates(scene: Scene, lanes: Any) -> None:
    query = candidates(TABLE, scene.engine.dialect.name, (len(lanes),))
    with scene.engine.begin() as connection:
        connection.execute(query, WANTED.parameters(lanes, 10)).all()


def _claim_one(scene: Scene, values: dict[str, Any]) -> None:
    """As after a claim that the database has refused for the sake of another row."""
    sent_at, statement = time.monotonic(), claim_one(TABLE, scene.engine.dialect.name)
    raws = claiming._claimed(scene.engine, TABLE, TYPE, values, lambda c: c.execute(statement, values).all(), WANTED)
    scene.ledger.claimed(raws, sent_at=sent_at)


def _bury(scene: Scene, raws: Sequence[RawAction]) -> None:
    raw, sent_at = raws[0], time.monotonic()
    errors = verdicts(Unprocessable(error_type="E", message="m"), [raw])[0].errors or ()
    if refusals.bury(scene.engine, TABLE, raw.id, raw.claim_count, errors):
        scene.ledger.accepted(raw, "dead", sent_at=sent_at)


def _paused(scene: Scene) -> None:
    _two_due(scene)
    operations.pause(scene.engine, PAUSED)


def _lanes(scene: Scene) -> Any:
    _two_due(scene)
    return [lane for lane in claiming.survey(scene.engine, TABLE).due() if lane.type == TYPE]


def _one_wanted(scene: Scene) -> dict[str, Any]:
    return WANTED.parameters([], 10) | {"wanted_id": _two_due(scene)[0]}


def _lanes_with_keys(scene: Scene) -> Any:
    scene.publish(None, ordering_key="k")
    scene.publish("key", ordering_key="l")
    return [lane for lane in claiming.survey(scene.engine, TABLE).due() if lane.type == TYPE]


def _two_endless(scene: Scene) -> list[RawAction]:
    raws = _two_over(scene)
    last_day = datetime(9999, 12, 31, tzinfo=UTC)
    change(scene.engine, *(raw.id for raw in raws), lease_expires_at=last_day)
    return raws


def _crashed_lanes(scene: Scene) -> Any:
    """Of two whose last attempt crashed."""
    raws = _two_over(scene)
    _rescue(scene, None)
    make_due(scene.engine, *(raw.id for raw in raws))
    return [lane for lane in claiming.survey(scene.engine, TABLE).due() if lane.type == TYPE]


def _keys(raws: Sequence[RawAction]) -> list[tuple[int, int]]:
    return [(raw.id, raw.claim_count) for raw in raws]


def _follow(scene: Scene, raws: Sequence[RawAction]) -> None:
    outstanding.follow(scene.engine, TABLE, [Followed(*key, "run", HOUR) for key in _keys(raws)])


def _take(scene: Scene, raws: Sequence[RawAction]) -> None:
    """Outside of a flow run, so that the claim stays one that rescue takes back by its lease."""
    outstanding.take(scene.engine, TABLE, _keys(raws)[0], None, lease=HOUR)


def _settle_in_own_transaction(scene: Scene, raws: Sequence[RawAction]) -> None:
    sent_at = time.monotonic()
    with scene.engine.begin() as connection:
        for raw in raws:
            settle_action(connection, raw.action())
    for raw in raws:
        scene.ledger.accepted(raw, "processed", sent_at=sent_at)


def _release_unheard(scene: Scene, raws: Sequence[RawAction]) -> None:
    """As after a claim whose COMMIT was not answered."""
    since, sent_at = datetime(2000, 1, 1, tzinfo=UTC), time.monotonic()
    release_unheard(scene.engine, TABLE, claimed_by=HOLDER, since=since, is_held=lambda _: False)
    for raw in raws:
        scene.ledger.accepted(raw, "pending", sent_at=sent_at)


def _ask_holders(scene: Scene, _: Any) -> None:
    with scene.engine.begin() as connection:
        connection.execute(diagnose.holders(TABLE)).all()


def _prove(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        prove(engine, "claim_dispatch_probe", "it")


def _rescue(scene: Scene, _: Any) -> None:
    rescue(scene.engine, TABLE, lambda _: AT_ONCE, limit=10)


FAILED, SNOOZED = Failed(error_type="E", message="m"), Snooze(timedelta(0))
HOUR = timedelta(hours=1)
WANTED: Final = claiming._Wanted(HOUR, HOLDER, None, True, None, None)

ACTS: Final[dict[str, Act]] = {
    "publish one": _act(_nothing, lambda s, _: s.publish(None), "publish"),
    "publish one, by URL": _act(_nothing, _publish_by_url, "publish", commits_each=True),
    "publish one, key new": _act(_nothing, lambda s, _: s.publish("k1"), "publish", again=True),
    "publish one, key taken": _act(
        _holders, lambda s, _: s.publish("k1"), "publish", "publish_existing", changes=False, again=True
    ),
    "publish one, replacing": _act(
        _holders, lambda s, _: s.publish("k1", on_conflict="replace"), "publish", "publish_replace", again=True
    ),
    "publish a batch": _act(_nothing, lambda s, _: _publish_many(s, None, None), "publish"),
    "publish a batch, keys": _act(
        _holders, lambda s, _: _publish_many(s, "k1", "k3"), "publish", "publish_existing", again=True
    ),
    "publish a batch, replacing": _act(
        _holders,
        lambda s, _: _publish_many(s, "k1", "k2", on_conflict="replace"),
        *("publish", "publish_lock", "publish_replace"),
        sqlite=("publish", "publish_replace"),
        again=True,
    ),
    "publish a batch, joined": _act(
        _nothing, _publish_in_own_transaction, "publish", sqlite=("publish_begin", "publish")
    ),
    "survey": _act(_two_due, lambda s, _: claiming.survey(s.engine, TABLE), "survey", changes=False),
    "count what is due": _act(
        _lanes, lambda s, lanes: claiming.count_due(s.engine, TABLE, lanes), "count_due", changes=False
    ),
    "rescue": _act(_two_over, _rescue, "rescue", "settle"),
    "claim": _act(_lanes, _claim, "claim"),
    "claim what has a limit": _act(
        _lanes, _claim_limited, "lock_type", "running", "claim", sqlite=("running", "claim")
    ),
    "claim what has to wait": _act(_crashed_lanes, _claim_suspects, "claim", "begin"),
    "claim beside keys": _act(_lanes_with_keys, _claim_beside_keys, "claim", "depth"),
    "claim behind keys": _act(_lanes_with_keys, _claim_behind_keys, "heads", "claim_behind"),
    "look for candidates": _act(_lanes, _look_for_candidates, "candidates", changes=False),
    "claim one": _act(_one_wanted, _claim_one, "claim_one"),
    "bury": _act(_two_executed, _bury, "bury"),
    "rescue what never ends": _act(_two_endless, _rescue, "rescue", "rescue_endless", "settle"),
    "count what runs": _act(_two_claimed, lambda s, _: limiting.running(s.engine, TABLE), "running", changes=False),
    "begin": _act(
        _two_claimed,
        lambda s, raws: claiming.begin(s.engine, TABLE, [(*key, "run") for key in _keys(raws)]),
        "begin",
    ),
    "begin elsewhere, once": _act(
        _two_claimed,
        lambda s, raws: fetching.begin_once(s.engine, TABLE, _keys(raws), "run", lease=HOUR),
        "begin_once",
    ),
    "take back the leave to begin": _act(
        _two_claimed, lambda s, raws: fetching.take_back(s.engine, TABLE, _keys(raws), lease=HOUR), "begin_once"
    ),
    "renew": _act(_two_executed, lambda s, raws: claiming.renew(s.engine, TABLE, _keys(raws), lease=HOUR), "renew"),
    "settle processed": _act(_two_executed, lambda s, raws: s.settle(raws, Processed()), "settle"),
    "settle failed": _act(_two_failed, lambda s, raws: s.settle(raws, FAILED), "settle"),
    "settle snoozed": _act(_two_snoozed, lambda s, raws: s.settle(raws, SNOOZED), "settle"),
    "settle, joined": _act(_two_executed, _settle_in_own_transaction, "settle"),
    "recognise what was settled": _act(
        _two_settled, lambda s, claims: recognise(s.engine, TABLE, claims), "recognise", changes=False
    ),
    "release": _act(_two_claimed, lambda s, raws: s.settle(raws, Released()), "settle"),
    "release what was not heard of": _act(_two_claimed, _release_unheard, "unheard", "settle"),
    "ask who holds claims": _act(_two_claimed, _ask_holders, "holders", changes=False),
    "look for runs elsewhere": _act(
        _two_claimed, lambda s, _: outstanding.page(s.engine, TABLE, None, limit=10), "outstanding", changes=False
    ),
    "look at claims": _act(
        _two_claimed, lambda s, raws: outstanding.held(s.engine, TABLE, _keys(raws)), "held", changes=False
    ),
    "follow a run": _act(_two_claimed, _follow, "follow"),
    "take a claim": _act(_two_claimed, _take, "take"),
    "identify the table": _act(
        _nothing, lambda s, _: outstanding.identity(s.engine, TABLE), "identify", sqlite=(), changes=False
    ),
    "cancel": _act(_two_due, lambda s, ids: operations.cancel(s.engine, ids), "cancellable", "cancel"),
    "retry": _act(_two_cancelled, lambda s, ids: operations.retry(s.engine, ids), "retry", "wake", sqlite=("retry",)),
    "reschedule": _act(
        _two_due,
        lambda s, ids: operations.reschedule(s.engine, ids, delay=HOUR),
        *("reschedule", "wake"),
        sqlite=("reschedule",),
    ),
    "prune": _act(_two_old, lambda s, _: operations.prune(s.engine, timedelta(minutes=1)), "prune"),
    "count what is old": _act(
        _two_old, lambda s, _: operations.count_prunable(s.engine, HOUR), "count_prunable", changes=False
    ),
    "pause": _act(_two_due, lambda s, _: operations.pause(s.engine, PAUSED), "pause", again=True),
    "pause, again": _act(
        _paused,
        lambda s, _: operations.pause(s.engine, PAUSED, reason="why"),
        *("pause", "explain_pause"),
        again=True,
    ),
    "resume": _act(_paused, lambda s, _: operations.resume(s.engine, PAUSED), "resume", again=True),
    "look at pauses": _act(_paused, lambda s, _: operations.paused(s.engine), "paused", changes=False),
    "look": _act(_two_due, lambda s, _: operations.find(s.engine), "find", changes=False),
    "look at ids": _act(_two_due, lambda s, _: operations.find_ids(s.engine), "find_ids", changes=False),
    "ask about the server": _act(_nothing, lambda s, _: asking.ask_server(s.engine), "server", changes=False),
    "ask about rights": _act(
        _nothing, lambda s, _: asking.ask_rights(s.engine, TABLE), "columns_and_rights", sqlite=(), changes=False
    ),
    "ask about indexes": _act(_nothing, lambda s, _: asking.ask_indexes(s.engine, TABLE), "indexes_of", changes=False),
    "ask about the wake-up": _act(
        _nothing, lambda s, _: asking.ask_wake_up(s.engine, TABLE), "wake_up", sqlite=(), changes=False
    ),
    "prove that notifications arrive": _act(_nothing, lambda s, _: _prove(s.engine), "probe", sqlite=(), changes=False),
    "ask about dead rows": _act(
        _nothing, lambda s, _: asking.ask_tuples(s.engine, TABLE), "tuples_of", sqlite=(), changes=False
    ),
    "ask what pins them": _act(_nothing, lambda s, _: asking.ask_pins(s.engine), "pins", sqlite=(), changes=False),
    "ask about claims": _act(
        _two_claimed, lambda s, _: asking.ask_claims(s.engine, TABLE), "claims_held", changes=False
    ),
    "ask what holds others back": _act(
        _lanes_with_keys, lambda s, _: asking.ask_blocking(s.engine, TABLE), "blocking", changes=False
    ),
    "look at counts": _act(_two_due, lambda s, _: operations.counts(s.engine), "count", changes=False),
}
