from __future__ import annotations

from dataclasses import replace

import pytest
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest, claim_slice, load_requests, return_slice
from pipeline.jobs.ending import end_waiting_requests
from pipeline.jobs.partial_outputs import OutputPart, save_parts
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.tables.requests import OutcomeKind

GROUP = "group-0@here"


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def claim(database: Engine, group_id: str = GROUP) -> tuple[ClaimedSlice, list[PlannedRequest]]:
    with database.begin() as conn:
        claimed = claim_slice(conn, model=MODEL, group_id=group_id, lease_seconds=30)
        assert claimed is not None
        return claimed, load_requests(conn, claimed)


def give_back(database: Engine, claimed: ClaimedSlice) -> None:
    with database.begin() as conn:
        assert return_slice(conn, claimed)


def save(database: Engine, *parts: OutputPart) -> frozenset[int]:
    with database.begin() as conn:
        return save_parts(conn, parts)


def saved(database: Engine) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for row in sql(database, "SELECT position, num_tokens FROM partial_outputs ORDER BY 1, 2")]


def test_another_attempt_finds_the_parts_in_their_order(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2])
    claimed, (first, second) = claim(database)
    assert (first.output_parts, first.num_saved_tokens) == ((), 0)
    save(database, OutputPart(first.id, claimed, 0, 16, b"one"), OutputPart(second.id, claimed, 0, 3, b"other"))
    save(database, OutputPart(first.id, claimed, 16, 20, b"two"))
    give_back(database, claimed)

    _, (first, second) = claim(database, "group-1@here")

    assert (first.output_parts, first.num_saved_tokens) == ((b"one", b"two"), 36)
    assert (second.output_parts, second.num_saved_tokens) == ((b"other",), 3)


def test_a_part_whose_commit_was_in_doubt_is_saved_again_with_what_came_since(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [1])
    claimed, (request,) = claim(database)
    save(database, OutputPart(request.id, claimed, 0, 16, b"one"))
    save(database, OutputPart(request.id, claimed, 0, 24, b"one and more"))
    save(database, OutputPart(request.id, claimed, 24, 5, b"two"))
    give_back(database, claimed)

    assert claim(database)[1][0].output_parts == (b"one and more", b"two")


def test_what_follows_a_gap_is_not_gone_on_from(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    claimed, (request,) = claim(database)
    save(database, OutputPart(request.id, claimed, 0, 16, b"one"), OutputPart(request.id, claimed, 20, 16, b"two"))
    give_back(database, claimed)

    (again,) = claim(database)[1]
    assert (again.output_parts, again.num_saved_tokens) == ((b"one",), 16)


def test_a_group_that_lost_its_lease_saves_nothing(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    stale, (request,) = claim(database)
    give_back(database, stale)
    assert save(database, OutputPart(request.id, stale, 0, 16, b"x")) == {stale.id}
    current, _ = claim(database)
    for lost in (stale, replace(current, group_id="group-1@here")):
        assert save(database, OutputPart(request.id, lost, 0, 16, b"x")) == {stale.id}
    assert saved(database) == []

    assert save(database, OutputPart(request.id, current, 0, 16, b"x")) == frozenset()
    assert saved(database) == [(0, 16)]


@pytest.mark.parametrize("kind", [OutcomeKind.FAILED, OutcomeKind.CANCELLED])
def test_an_outcome_deletes_the_parts_and_none_comes_after_it(
    database: Engine, tenant: SeededTenant, kind: OutcomeKind
) -> None:
    seed_batch(database, tenant, [2])
    claimed, (first, second) = claim(database)
    save(database, OutputPart(first.id, claimed, 0, 16, b"x"), OutputPart(second.id, claimed, 0, 7, b"y"))

    with database.begin() as conn:
        record_outcomes(conn, [RequestOutcome(first.id, first.custom_id, claimed, kind)])
    save(database, OutputPart(first.id, claimed, 16, 16, b"late"))

    assert saved(database) == [(0, 7)]


def test_a_batch_that_ends_before_its_slice_is_claimed_again_deletes_the_parts(
    database: Engine, tenant: SeededTenant
) -> None:
    batch_id = seed_batch(database, tenant, [1])
    claimed, (request,) = claim(database)
    save(database, OutputPart(request.id, claimed, 0, 16, b"x"))
    give_back(database, claimed)

    end_waiting_requests(batch_id, OutcomeKind.CANCELLED, database)

    assert saved(database) == []
