from __future__ import annotations

from datetime import timedelta

import pytest
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.claiming import claim_slice
from pipeline.jobs.explaining import explain
from pipeline.schemas.explanations import BatchExplanation
from pipeline.tables import ServiceClass

GROUP = "group-0@here"


@pytest.fixture
def tenants(database: Engine) -> list[SeededTenant]:
    seed_model(database)
    return [seed_tenant(database, name) for name in ("acme", "globex")]


def plan(
    database: Engine, tenant: SeededTenant, num_slices: int, service_class: str = "standard", hours: int = 24
) -> str:
    """Slices of 10 requests and 1,000 weighted tokens."""
    batch_id = seed_batch(database, tenant, [10] * num_slices, window=timedelta(hours=hours))
    for table, column in (("slices", "batch_id"), ("batches", "id")):
        sql(
            database,
            f"UPDATE {table} SET service_class = :class WHERE {column} = :id",
            **{"class": service_class, "id": batch_id},
        )
    sql(database, "UPDATE slices SET num_prompt_tokens = 200, num_answer_tokens = 400")
    return batch_id


def start_group(database: Engine, state: str = "ready", group: str = GROUP) -> None:
    sql(
        database,
        "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, :model, :state, 1, '[]', '{}')"
        " ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        id=group,
        model=MODEL,
        state=state,
    )


def explained(database: Engine, tenant: SeededTenant, batch_id: str) -> BatchExplanation:
    with Session(database) as session:
        return BatchExplanation.of(explain(session, batch_id, tenant.id))


def codes(explanation: BatchExplanation) -> list[str]:
    return [reason.code for reason in explanation.reasons]


def claim(database: Engine) -> int:
    with database.begin() as conn:
        claimed = claim_slice(conn, model=MODEL, group_id=GROUP, lease_seconds=60)
    assert claimed is not None
    return claimed.id


def test_what_is_ahead_by_class_by_share_and_of_the_tenant_itself_is_told_apart(
    database: Engine, tenants: list[SeededTenant]
) -> None:
    acme, globex = tenants
    mine = plan(database, acme, 2, hours=48)
    plan(database, acme, 3, hours=12)
    plan(database, globex, 4, "priority")
    plan(database, globex, 9)
    plan(database, globex, 7, "flex")
    sql(
        database,
        "INSERT INTO fair_shares VALUES (:model, 'standard', :acme, 6000), (:model, 'standard', :globex, 1000)",
        model=MODEL,
        acme=acme.id,
        globex=globex.id,
    )
    start_group(database)
    start_group(database, "starting", "group-1@here")

    found = explained(database, acme, mine)

    assert codes(found) == ["class_ahead", "share_ahead", "own_work"]
    assert found.ahead is not None
    assert (found.ahead.slices_by_class, found.ahead.work_by_class) == (4, 4_000)
    # 5,000 that globex was served less, and as much as is served to acme before it comes to this batch.
    assert (found.ahead.slices_by_share, found.ahead.work_by_share) == (8, 8_000)
    assert (found.ahead.slices_of_own, found.ahead.work_of_own) == (3, 3_000)
    assert found.groups is not None
    assert (found.groups.ready, found.groups.starting, found.groups.away) == (1, 1, 0)
    assert found.shares is not None
    assert (found.shares.own.counter, [other.counter for other in found.shares.others]) == (5_000, [0])
    assert found.shares.num_others == 1
    assert globex.id not in found.model_dump_json()
    assert (found.slices.pending, found.slices.at_work, found.slices.done) == (2, 0, 0)
    assert (found.estimated_start, found.estimated_finish) == (None, None)  # nothing is known of the group's speed
    assert found.reasons[0].message == "Slices of a higher service class wait too: 4."


def test_estimates_begin_when_a_group_has_been_measured(database: Engine, tenants: list[SeededTenant]) -> None:
    acme, globex = tenants
    first = plan(database, acme, 1)
    mine = plan(database, acme, 2, hours=48)
    start_group(database)
    done = claim(database)
    sql(database, "UPDATE slices SET status = 'done', num_unfinished = 0 WHERE id = :id", id=done)
    sql(
        database,
        "UPDATE attempts SET started_at = now() - interval '100 s', ended_at = now(), num_succeeded = 10,"
        " num_tokens = 900",
    )
    found = explained(database, acme, mine)
    assert codes(found) == ["engines_full"]
    assert found.rates is not None
    assert found.rates.work_per_second == pytest.approx(10, rel=0.05)
    assert found.rates.recent_tokens_per_second == 1
    assert found.estimated_start is not None
    assert found.estimated_finish is not None
    assert found.estimated_finish - found.estimated_start == pytest.approx(200, abs=5)
    # Nothing else waits, so that another class would change nothing; of what waits in it, all comes first.
    assert found.estimated_finish_in_class[ServiceClass.PRIORITY] == pytest.approx(found.estimated_finish, abs=5)
    plan(database, globex, 5, "priority")
    found = explained(database, acme, mine)
    in_class = found.estimated_finish_in_class
    assert found.estimated_finish is not None
    assert in_class[ServiceClass.FLEX] == pytest.approx(found.estimated_finish, abs=5)
    assert found.estimated_finish - in_class[ServiceClass.PRIORITY] == pytest.approx(300, abs=5)  # type: ignore[operator]
    sql(database, "UPDATE slices SET status = 'done', num_unfinished = 0 WHERE service_class = 'priority'")
    assert codes(explained(database, acme, first)) == ["running"]

    while_at_work = claim(database)
    claim(database)
    found = explained(database, acme, mine)
    assert (codes(found), found.ahead) == (["running"], None)
    assert while_at_work != done


@pytest.mark.parametrize(
    ("states", "reason"),
    [([], "no_group"), (["drained", "degraded", "stopped"], "no_group"), (["drained", "starting"], "cold_start")],
)
def test_nobody_there_to_work_is_a_reason(
    database: Engine, tenants: list[SeededTenant], states: list[str], reason: str
) -> None:
    batch_id = plan(database, tenants[0], 1)
    for number, state in enumerate(states):
        start_group(database, state, f"group-{number}@here")
    assert codes(explained(database, tenants[0], batch_id)) == [reason]


def test_a_batch_that_a_budget_stops_or_that_has_ended_says_so(database: Engine, tenants: list[SeededTenant]) -> None:
    batch_id = plan(database, tenants[0], 1)
    start_group(database)
    sql(database, "UPDATE batches SET pause_reason = 'budget_7'")
    found = explained(database, tenants[0], batch_id)
    assert codes(found) == ["budget"]
    assert "budget_7" in found.reasons[0].message
    sql(database, "UPDATE batches SET pause_reason = NULL, status = 'completed'")
    assert codes(explained(database, tenants[0], batch_id)) == ["ended"]
    with pytest.raises(BatchNotFoundError):
        explained(database, tenants[1], batch_id)
