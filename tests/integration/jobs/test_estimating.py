from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.jobs.estimating import estimated_finish, work_ahead
from pipeline.jobs.load import Load, Queue, load_of
from pipeline.tables.batches import ServiceClass


@pytest.fixture
def tenants(database: Engine) -> list[SeededTenant]:
    seed_model(database)
    return [seed_tenant(database, name) for name in ("acme", "globex")]


def plan(database: Engine, tenant: SeededTenant, num_slices: int, service_class: str = "standard") -> None:
    """Slices of 1,000 weighted tokens: 200 of prompt, 400 of output."""
    batch_id = seed_batch(database, tenant, [10] * num_slices)
    sql(
        database,
        "UPDATE slices SET num_prompt_tokens = 200, num_answer_tokens = 400, service_class = :class"
        " WHERE batch_id = :id",
        **{"class": service_class, "id": batch_id},
    )


def run_groups(database: Engine, num_groups: int) -> None:
    """Groups that are ready, and one that has done two slices, one beside the other, in 100 seconds."""
    for number in range(num_groups):
        sql(
            database,
            "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, :model, 'ready', 1, '[]', '{}')",
            id=f"group-{number}@here",
            model=MODEL,
        )
    for slice_id in [row[0] for row in sql(database, "SELECT id FROM slices ORDER BY id LIMIT 2")]:
        sql(
            database,
            "UPDATE slices SET status = 'done', num_unfinished = 0 WHERE id = :id",
            id=slice_id,
        )
        sql(
            database,
            "INSERT INTO attempts (slice_id, lease_epoch, batch_id, group_id, started_at, ended_at, num_succeeded)"
            " VALUES (:id, 1, 'b', 'group-0@here', now() - interval '100 s', now(), 10)",
            id=slice_id,
        )


def finish(database: Engine, tenant: SeededTenant, service_class: ServiceClass = ServiceClass.STANDARD) -> float | None:
    """Seconds until 2,000 weighted tokens would be done."""
    with database.begin() as conn:
        moment = estimated_finish(
            conn,
            MODEL,
            tenant_id=tenant.id,
            service_class=service_class,
            num_prompt_tokens=1_000,
            num_answer_tokens=500,
        )
        now = conn.exec_driver_sql("SELECT now()").scalar_one()
    assert isinstance(now, datetime)
    return None if moment is None else (moment - now).total_seconds()


def test_nothing_is_said_where_no_group_is_ready_or_none_was_measured(
    database: Engine, tenants: list[SeededTenant]
) -> None:
    plan(database, tenants[0], 3)
    assert finish(database, tenants[0]) is None
    run_groups(database, 1)
    sql(database, "DELETE FROM attempts")
    assert finish(database, tenants[0]) is None


def test_the_finish_is_what_is_ahead_by_class_and_share_over_the_speed_of_the_groups(
    database: Engine, tenants: list[SeededTenant]
) -> None:
    acme, globex = tenants
    plan(database, globex, 12)
    run_groups(database, 2)  # 2,000 in 100 seconds, each of two: 40 a second
    # As much of globex is served meanwhile as of acme; of globex alone, all that it has.
    assert finish(database, acme) == pytest.approx((2_000 + 2_000) / 40, abs=2)
    assert finish(database, globex) == pytest.approx((10_000 + 2_000) / 40, abs=2)
    assert finish(database, acme, ServiceClass.PRIORITY) == pytest.approx(2_000 / 40, abs=2)
    assert finish(database, acme, ServiceClass.FLEX) == pytest.approx((10_000 + 2_000) / 40, abs=2)
    # What other models have waiting is nobody's business here.
    seed_model(database, "large")
    seed_batch(database, globex, [5] * 5, model="large")
    assert finish(database, globex) == pytest.approx((10_000 + 2_000) / 40, abs=2)
    sql(database, "UPDATE groups SET state = 'draining' WHERE id = 'group-1@here'")
    assert finish(database, acme) == pytest.approx((2_000 + 2_000) / 20, abs=4)
    with database.begin() as conn:
        load = load_of(conn, MODEL)
    assert (load.num_ready, load.num_away, load.num_starting) == (1, 1, 0)


def test_who_was_served_more_than_those_who_wait_lets_them_catch_up(
    database: Engine, tenants: list[SeededTenant]
) -> None:
    acme, globex = tenants
    plan(database, globex, 12)
    run_groups(database, 2)
    served = (
        "INSERT INTO fair_shares (model, service_class, tenant_id, served) VALUES (:model, 'standard', :id, :served)"
    )
    sql(database, served, model=MODEL, id=acme.id, served=5_000)
    sql(database, served, model=MODEL, id=globex.id, served=1_000)
    assert finish(database, acme) == pytest.approx((4_000 + 2_000 + 2_000) / 40, abs=2)


def test_others_are_ahead_by_their_weight_and_by_what_they_were_served_less() -> None:
    def queue(name: str, cost: int, *, counter: int = 0, weight: int = 1) -> Queue:
        counts = (Decimal(cost), 1, Decimal(0), 0)
        return Queue(ServiceClass.STANDARD, name, *counts, Decimal(counter), Decimal(weight))

    mine = queue("mine", 100, counter=50)
    others = [queue("heavy", 10_000, counter=50, weight=3), queue("behind", 10_000), queue("small", 5)]
    load = Load("tiny", datetime.now(UTC), [mine, *others], 1, 0, 0, Decimal(1))
    ahead = work_ahead(load, mine, cost=Decimal(100), own=Decimal(0))
    assert ahead.by_share == 300 + 150 + 5
    assert ahead.total == ahead.by_share
