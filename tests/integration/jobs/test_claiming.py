from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.jobs.claiming import (
    ClaimedSlice,
    claim_slice,
    count_crash_exposures,
    expire_leases,
    is_committed,
    load_requests,
    renew_leases,
    return_slice,
)
from pipeline.jobs.waste import WastePart
from pipeline.tables.rates import WasteCause
from pipeline.tables.requests import OutcomeKind

GROUP = "group-0@here"


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def claim(database: Engine, *, group: str = GROUP, last: ClaimedSlice | None = None) -> ClaimedSlice | None:
    with database.begin() as conn:
        return claim_slice(conn, model=MODEL, group_id=group, lease_seconds=30, last_slice=last)


def claim_one(database: Engine, *, group: str = GROUP, last: ClaimedSlice | None = None) -> ClaimedSlice:
    claimed = claim(database, group=group, last=last)
    assert claimed is not None
    return claimed


def test_a_claim_is_an_attempt_with_a_lease_by_the_database_clock(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [2])
    claimed = claim_one(database)
    assert (claimed.batch_id, claimed.tenant_id, claimed.api_key_id) == (batch_id, tenant.id, tenant.api_key_id)
    assert claimed.endpoint == "/v1/chat/completions"
    assert sql(
        database,
        "SELECT status, lease_epoch, group_id, lease_expires_at - now() BETWEEN interval '25 s' AND interval '30 s'"
        " FROM slices",
    ) == [("claimed", 1, GROUP, True)]
    attempts = 'SELECT slice_id, lease_epoch, group_id, batch_id, "end" FROM attempts'
    assert sql(database, attempts) == [(claimed.id, 1, GROUP, batch_id, None)]
    assert claim(database) is None


def test_a_claim_that_was_rolled_back_is_told_from_the_next_one_with_the_same_epoch(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [2])
    with database.connect() as conn, conn.begin() as undone:
        first = claim_slice(conn, model=MODEL, group_id=GROUP, lease_seconds=30)
        undone.rollback()
    assert first is not None
    with database.begin() as conn:
        assert not is_committed(conn, first)
    second = claim_one(database)
    assert (second.id, second.lease_epoch) == (first.id, first.lease_epoch)
    with database.begin() as conn:
        assert is_committed(conn, second)
        assert not is_committed(conn, first)
    sql(database, "UPDATE slices SET status = 'pending'")  # its lease ran out
    with database.begin() as conn:
        assert not is_committed(conn, second)


def test_whether_a_claim_was_committed_is_known_when_its_commit_is_over(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2])
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as conn:
            claimed = claim_slice(conn, model=MODEL, group_id=GROUP, lease_seconds=30)
            assert claimed is not None

            def ask() -> bool:
                with database.begin() as other:
                    return is_committed(other, claimed)

            answer = pool.submit(ask)
            while not sql(database, "SELECT FROM pg_locks WHERE NOT granted"):
                assert not answer.done()
        assert answer.result()


def test_requests_are_loaded_in_planned_order_without_those_that_have_an_outcome(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [3], prompt=[1, 70_000, 2], params={"max_tokens": 4, "stop": ["x"], "seed": 9})
    sql(database, "UPDATE requests SET outcome = 'cancelled' WHERE line = 2")
    with database.begin() as conn:
        requests = load_requests(conn, claim_one(database))
    assert [request.custom_id for request in requests] == ["request-1", "request-3"]
    assert requests[0].prompt_token_ids == [1, 70_000, 2]
    assert (requests[0].params.max_tokens, requests[0].params.stop, requests[0].params.seed) == (4, ("x",), 9)


def test_the_tenant_with_the_fewest_slices_at_work_is_next(database: Engine, tenant: SeededTenant) -> None:
    other = seed_tenant(database, "other")
    seed_batch(database, tenant, [1] * 4)
    seed_batch(database, other, [1] * 2)
    order = [claim_one(database).tenant_id for _ in range(6)]
    assert order == [tenant.id, other.id, tenant.id, other.id, tenant.id, tenant.id]


def test_the_nearest_deadline_of_a_tenant_is_next(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    urgent = seed_batch(database, tenant, [1], window=timedelta(hours=1))
    assert claim_one(database).batch_id == urgent


def test_a_group_goes_on_in_the_batch_where_it_is(database: Engine, tenant: SeededTenant) -> None:
    first = seed_batch(database, tenant, [1] * 3)
    second = seed_batch(database, tenant, [1] * 3)
    sql(database, "UPDATE slices SET deadline = (SELECT max(deadline) FROM slices)")
    mine = claim_one(database)
    assert (mine.batch_id, mine.position) == (first, 0)
    sql(database, "UPDATE slices SET status = 'done' WHERE batch_id = :id AND position = 0", id=second)
    there = replace(mine, batch_id=second)
    assert [_place(claim_one(database, last=there)), _place(claim_one(database))] == [(second, 1), (first, 1)]


def _place(claimed: ClaimedSlice) -> tuple[str, int]:
    return claimed.batch_id, claimed.position


@pytest.mark.parametrize("status", ["cancelling", "validating", "finalizing"])
def test_only_batches_in_progress_are_worked_on(database: Engine, tenant: SeededTenant, status: str) -> None:
    seed_batch(database, tenant, [1])
    sql(database, "UPDATE batches SET status = :status", status=status)
    assert claim(database) is None


@pytest.mark.parametrize("analyzed_after", ["nothing", "the first batch", "all"])
def test_a_claim_does_not_look_through_the_slices_of_a_paused_batch(
    database: Engine, tenant: SeededTenant, analyzed_after: str
) -> None:
    paused = seed_batch(database, tenant, [1] * 1000, window=timedelta(hours=1))
    if analyzed_after == "the first batch":
        sql(database, "ANALYZE")
    open_one = seed_batch(database, tenant, [1] * 1000, window=timedelta(hours=2))
    sql(database, "UPDATE batches SET pause_reason = 'client', paused_at = now() WHERE id = :id", id=paused)
    if analyzed_after == "all":
        sql(database, "ANALYZE")
    last = None
    for _ in range(3):
        with database.begin() as conn:
            last = claim_slice(conn, model=MODEL, group_id=GROUP, lease_seconds=30, last_slice=last)
            num_read = conn.exec_driver_sql(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'slices'"
            ).scalar_one()
        assert last is not None
        assert last.batch_id == open_one
        assert num_read < 50


@pytest.mark.parametrize(
    ("positions", "order"),
    [((0, 1, 2, 3), "oo-"), ((2, 3, 0, 1), "oo-"), ((1, 2, 0, 3), "oo-"), ((0, 2, 1, 3), "o-o"), ((0, 3, 1, 2), "-oo")],
)
def test_a_batch_with_the_very_deadline_of_a_paused_one_is_worked_on(
    positions: tuple[int, int, int, int], order: str, database: Engine, tenant: SeededTenant
) -> None:
    """However the slices of the two are mixed; one that is between those of the other comes when nothing else waits."""
    paused, other = seed_batch(database, tenant, [1, 1]), seed_batch(database, tenant, [1, 1])
    later = seed_batch(database, tenant, [1])
    sql(database, "UPDATE batches SET pause_reason = 'client', paused_at = now() WHERE id = :id", id=paused)
    sql(database, "UPDATE slices SET deadline = (SELECT min(deadline) FROM slices) WHERE batch_id <> :id", id=later)
    [(first,)] = sql(database, "SELECT min(id) FROM slices")
    for place, position in enumerate(positions):
        sql(database, "UPDATE slices SET id = :new WHERE id = :id", new=-1 - position, id=first + place)

    claimed = []
    while (found := claim(database)) is not None:
        claimed.append(found.batch_id)

    assert claimed == [{"o": other, "-": later}[kind] for kind in order]


def test_a_batch_past_its_window_is_not_begun(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1], window=timedelta(seconds=-1))
    assert claim(database) is None


def test_other_models_are_left_alone(database: Engine, tenant: SeededTenant) -> None:
    seed_model(database, "large")
    seed_batch(database, tenant, [1], model="large")
    assert claim(database) is None


def test_two_claimers_never_get_the_same_slice(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1] * 24)
    claimed: list[int] = []
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        while (one := claim(database, group=name)) is not None:
            claimed.append(one.id)

    threads = [threading.Thread(target=work, args=(f"group-{number}@here",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == 24
    assert len(set(claimed)) == 24
    assert sql(database, "SELECT DISTINCT lease_epoch FROM slices") == [(1,)]


def test_a_slice_that_is_being_claimed_is_passed_over_without_waiting(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1, 1])
    with database.begin() as conn:
        first = claim_slice(conn, model=MODEL, group_id=GROUP, lease_seconds=30)
        second = claim(database, group="group-1@here")
    assert first is not None
    assert second is not None
    assert first.id != second.id


def test_renewing_says_what_is_still_held(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1] * 4)
    held = [claim_one(database) for _ in range(4)]
    sql(database, "UPDATE slices SET lease_expires_at = now() - interval '1 h'")
    sql(database, "UPDATE slices SET lease_epoch = 2 WHERE id = :id", id=held[0].id)
    sql(database, "UPDATE slices SET status = 'pending' WHERE id = :id", id=held[1].id)
    sql(database, "UPDATE slices SET status = 'done', lease_expires_at = NULL WHERE id = :id", id=held[2].id)
    with database.begin() as conn:
        renewal = renew_leases(conn, GROUP, held, 30)
    assert renewal.held == {held[2].id, held[3].id}
    assert renewal.ending == {}
    assert sql(
        database, "SELECT id, lease_expires_at IS NULL FROM slices WHERE lease_expires_at > now() OR status = 'done'"
    ) == [(held[2].id, True), (held[3].id, False)]
    with database.begin() as conn:
        assert renew_leases(conn, "another@here", held, 30).held == frozenset()
        assert renew_leases(conn, GROUP, [], 30).held == frozenset()


def test_renewing_tells_of_batches_that_end_early(database: Engine, tenant: SeededTenant) -> None:
    cancelled = seed_batch(database, tenant, [1])
    expired = seed_batch(database, tenant, [1])
    seed_batch(database, tenant, [1])
    held = {one.batch_id: one for one in [claim_one(database) for _ in range(3)]}
    sql(database, "UPDATE batches SET status = 'cancelling' WHERE id = :id", id=cancelled)
    sql(database, "UPDATE batches SET expires_at = now() - interval '1 s' WHERE id = :id", id=expired)
    with database.begin() as conn:
        renewal = renew_leases(conn, GROUP, list(held.values()), 30)
    assert renewal.held == {one.id for one in held.values()}
    assert renewal.ending == {held[cancelled].id: OutcomeKind.CANCELLED, held[expired].id: OutcomeKind.EXPIRED}


def test_a_returned_slice_waits_again_with_a_ticket(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    claimed = claim_one(database)
    with database.begin() as conn:
        assert return_slice(conn, claimed, [WastePart(WasteCause.DRAIN, 17, 5)])
    assert sql(database, "SELECT status, lease_expires_at FROM slices") == [("pending", None)]
    assert sql(database, 'SELECT "end", num_wasted_tokens, ended_at IS NULL FROM attempts') == [("returned", 17, False)]
    assert sql(database, "SELECT cause, num_tokens, engine_ms FROM waste") == [("drain", 17, 5)]
    assert sql(database, "SELECT queue, task, args FROM outbox") == [
        (f"generate.{MODEL}", "generate.slice", [MODEL]),
    ]
    assert claim_one(database).lease_epoch == 2


def test_a_slice_that_was_lost_is_not_returned(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    claimed = claim_one(database)
    sql(database, "UPDATE slices SET lease_epoch = 2")
    with database.begin() as conn:
        assert not return_slice(conn, claimed)
    assert sql(database, "SELECT status FROM slices") == [("claimed",)]
    assert sql(database, "SELECT count(*) FROM outbox") == [(0,)]


def test_a_group_that_starts_again_ends_the_leases_of_its_former_life(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1, 1])
    mine, other = claim_one(database), claim_one(database, group="group-1@here")
    with database.begin() as conn:
        assert expire_leases(conn, GROUP) == 1
    assert sql(database, "SELECT id FROM slices WHERE lease_expires_at <= clock_timestamp()") == [(mine.id,)]
    assert other.id != mine.id


def test_crash_exposures_are_counted_apart_from_attempts(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2])
    claimed = claim_one(database)
    with database.begin() as conn:
        first, second = load_requests(conn, claimed)
    with database.begin() as conn:
        assert count_crash_exposures(conn, [first, second]) == {first.id: 1, second.id: 1}
    with database.begin() as conn:
        assert count_crash_exposures(conn, [second.exposed(1)]) == {second.id: 2}
        assert [request.num_crash_exposures for request in load_requests(conn, claimed)] == [1, 2]


def test_a_crash_that_is_noted_again_because_the_commit_had_no_answer_counts_once(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [1])
    claimed = claim_one(database)
    with database.begin() as conn:
        (request,) = load_requests(conn, claimed)
    for _ in range(3):
        with database.begin() as conn:
            assert count_crash_exposures(conn, [request]) == {request.id: 1}
