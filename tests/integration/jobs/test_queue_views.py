from __future__ import annotations

from datetime import timedelta

import pytest
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pipeline.jobs import outbox, queue_views
from pipeline.jobs.claiming import claim_slice
from pipeline.jobs.queue_views import QueueView, TurnReason, view_queues, with_tickets
from pipeline.settings import PREFIX, get_settings


@pytest.fixture
def tenants(database: Engine, redis_url: str) -> list[SeededTenant]:
    seed_model(database)
    return [seed_tenant(database, name) for name in ("acme", "globex")]


def view(database: Engine, tenant: SeededTenant | None = None) -> QueueView:
    with Session(database) as session:
        found = view_queues(session, tenant.id if tenant else None)
    return found if tenant else with_tickets(found)


def plan(database: Engine, tenant: SeededTenant, num_slices: int, hours: int = 24, kind: str = "standard") -> str:
    batch_id = seed_batch(database, tenant, [10] * num_slices, window=timedelta(hours=hours))
    for table, column in (("slices", "batch_id"), ("batches", "id")):
        sql(database, f"UPDATE {table} SET service_class = :kind WHERE {column} = :id", kind=kind, id=batch_id)
    sql(database, "UPDATE batches SET in_progress_at = now() - interval '90 seconds' WHERE id = :id", id=batch_id)
    return batch_id


def test_an_idle_model_has_an_empty_queue(database: Engine, tenants: list[SeededTenant]) -> None:
    [model] = view(database).models
    assert (model.model, model.num_pending, model.num_tickets, model.turn) == (MODEL, 0, 0, None)


def test_who_was_served_least_is_next(database: Engine, tenants: list[SeededTenant]) -> None:
    first, second = tenants
    plan(database, first, 3)
    with database.begin() as conn:
        assert claim_slice(conn, model=MODEL, group_id="group-0@here", lease_seconds=60) is not None
    plan(database, second, 2)

    [model] = view(database).models

    assert model.num_pending == 4
    assert [(one.tenant, one.queue.num_pending, one.queue.num_at_work) for one in model.waiting] == [
        ("globex", 2, 0),
        ("acme", 2, 1),
    ]
    assert model.turn is not None
    assert (model.turn.waiting.tenant, model.turn.reason) == ("globex", TurnReason.SHARE)
    assert model.turn.second is not None
    assert model.turn.second.tenant == "acme"
    assert model.turn.waiting.since is not None
    assert (view(database).now - model.turn.waiting.since).total_seconds() >= 90


def test_a_class_goes_before_shares_and_a_deadline_decides_between_equals(
    database: Engine, tenants: list[SeededTenant]
) -> None:
    first, second = tenants
    plan(database, first, 1, hours=24)
    plan(database, second, 1, hours=2)
    [model] = view(database).models
    assert model.turn is not None
    assert (model.turn.waiting.tenant, model.turn.reason) == ("globex", TurnReason.DEADLINE)

    plan(database, first, 1, hours=48, kind="priority")
    [model] = view(database).models
    assert model.turn is not None
    assert (model.turn.waiting.tenant, model.turn.reason) == ("acme", TurnReason.CLASS)


def test_a_tenant_sees_its_own_queue_alone(database: Engine, tenants: list[SeededTenant]) -> None:
    first, second = tenants
    plan(database, first, 1)
    plan(database, second, 1)
    [model] = view(database, first).models
    assert [one.tenant for one in model.waiting] == ["acme"]
    assert model.turn is None  # it could name another


def test_paused_batches_wait_for_no_group(database: Engine, tenants: list[SeededTenant]) -> None:
    batch_id = plan(database, tenants[0], 2)
    sql(database, "UPDATE batches SET pause_reason = 'budget_1', paused_at = now() WHERE id = :id", id=batch_id)
    found = view(database)
    assert (found.num_paused, found.num_in_progress, found.models[0].num_pending) == (1, 0, 0)


def test_the_outbox_and_tickets_are_counted(
    database: Engine, tenants: list[SeededTenant], settings_env: pytest.MonkeyPatch
) -> None:
    with database.begin() as conn:
        outbox.add_tickets(conn, MODEL, 3)
    sql(database, "UPDATE outbox SET created_at = now() - interval '20 seconds'")
    before = view(database)
    assert (before.num_outbox_messages, before.models[0].num_tickets) == (3, 0)
    assert before.outbox_seconds >= 20

    outbox.publish(database)
    after = view(database)
    assert (after.num_outbox_messages, after.outbox_seconds, after.models[0].num_tickets) == (0, 0.0, 3)

    settings_env.setenv(PREFIX + "REDIS_URL", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    without = view(database)
    assert (without.is_redis_reachable, without.models[0].num_tickets) == (False, None)


def test_redis_keeps_no_tenant_waiting_who_is_shown_nothing_of_it(
    database: Engine, tenants: list[SeededTenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_views, "queue_lengths", lambda *_: pytest.fail("Redis was asked"))
    found = view(database, tenants[0])
    assert (found.is_redis_reachable, found.models[0].num_tickets) == (None, None)
