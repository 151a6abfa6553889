from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
import structlog
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.rating import TokenUsage
from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest, claim_slice, load_requests
from pipeline.jobs.lines import output_line
from pipeline.jobs.recording import Recorded, RequestOutcome, record_outcomes
from pipeline.jobs.waste import WastePart
from pipeline.tables.rates import WasteCause
from pipeline.tables.requests import OutcomeKind

GROUP = "group-0@here"
#: What `seed_model` asks for a million tokens, after its discount.
INPUT, CACHED, OUTPUT = (Decimal(price) * Decimal("0.667") for price in ("0.137", "0.061", "0.411"))


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def claim(database: Engine, model: str = MODEL) -> tuple[ClaimedSlice, list[PlannedRequest]]:
    with database.begin() as conn:
        claimed = claim_slice(conn, model=model, group_id=GROUP, lease_seconds=30)
        assert claimed is not None
        return claimed, load_requests(conn, claimed)


def answer(claimed: ClaimedSlice, request: PlannedRequest, usage: TokenUsage | None = None) -> RequestOutcome:
    body = json.dumps({"text": f"answer to {request.custom_id}", "nul": "\0"})
    return RequestOutcome(
        request.id,
        request.custom_id,
        claimed,
        OutcomeKind.SUCCEEDED,
        body=body,
        usage=usage or TokenUsage(num_prompt_tokens=7, num_cached_tokens=0, num_completion_tokens=5, engine_ms=3),
    )


def record(database: Engine, outcomes: Sequence[RequestOutcome]) -> Recorded:
    with database.begin() as conn:
        return record_outcomes(conn, outcomes)


def test_an_answer_is_written_with_its_usage_its_price_and_all_counters(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [2])
    claimed, (first, _) = claim(database)
    usage = TokenUsage(num_prompt_tokens=10, num_cached_tokens=4, num_completion_tokens=5, engine_ms=33)
    outcome = answer(claimed, first, usage)

    recorded = record(database, [outcome])

    assert recorded == Recorded(stale=frozenset(), done=frozenset(), finished_batches=())
    assert outcome.body is not None
    assert sql(database, "SELECT * FROM results")[0][:7] == (
        first.id,
        batch_id,
        outcome.body,
        len(output_line(first.id, first.custom_id, outcome.body)),
        claimed.id,
        1,
        GROUP,
    )
    usage_columns = "meter, quantity, tenant_id, api_key_id, batch_id, model, group_id, engine_ms"
    owner = (tenant.id, tenant.api_key_id, batch_id, MODEL, GROUP)
    assert sql(database, f"SELECT {usage_columns} FROM metered_usage ORDER BY meter") == [
        ("input_cached", 4, *owner, 0),
        ("input_uncached", 6, *owner, 0),
        ("output", 5, *owner, 33),
    ]
    assert sql(
        database, "SELECT meter, revision, quantity, unit_price, amount, currency FROM usage_prices ORDER BY meter"
    ) == [
        ("input_cached", 1, 4, Decimal("0.061"), 4 * CACHED / 10**6, "USD"),
        ("input_uncached", 1, 6, Decimal("0.137"), 6 * INPUT / 10**6, "USD"),
        ("output", 1, 5, Decimal("0.411"), 5 * OUTPUT / 10**6, "USD"),
    ]
    assert sql(database, "SELECT outcome, error_code FROM requests ORDER BY id") == [("succeeded", None), (None, None)]
    assert sql(database, "SELECT status, num_unfinished FROM slices") == [("claimed", 1)]
    assert sql(database, "SELECT num_succeeded, num_unsuccessful, num_tokens FROM attempts") == [(1, 0, 11)]
    counters = "num_succeeded, num_unsuccessful, num_prompt_tokens, num_cached_tokens, num_completion_tokens"
    assert sql(database, f"SELECT {counters} FROM batches") == [(1, 0, 10, 4, 5)]


def test_the_ledger_sums_to_zero_and_to_the_rated_lines(database: Engine, tenant: SeededTenant) -> None:
    other = seed_tenant(database, "other")
    seed_batch(database, tenant, [3])
    seed_batch(database, other, [3])
    outcomes = [
        answer(claimed, request) for claimed, requests in (claim(database), claim(database)) for request in requests
    ]
    record(database, outcomes[:4])
    record(database, outcomes[4:])

    amount = 7 * INPUT / 10**6 + 5 * OUTPUT / 10**6
    balances = """
        SELECT a.kind, a.tenant_id, sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id
        GROUP BY a.kind, a.tenant_id ORDER BY a.kind, a.tenant_id
    """
    assert sql(database, balances) == [
        *sorted([("receivable", tenant.id, 3 * amount), ("receivable", other.id, 3 * amount)]),
        ("revenue", None, -6 * amount),
    ]
    assert sql(database, "SELECT DISTINCT sum(amount) FROM ledger_entries GROUP BY transaction_id") == [(0,)]
    assert sql(database, "SELECT tenant_id, count(*) FROM ledger_transactions GROUP BY 1 ORDER BY 2") == [
        (tenant.id, 1),
        (other.id, 2),
    ]
    per_transaction = """
        SELECT count(*) FROM ledger_transactions t
        WHERE (SELECT sum(amount) FROM usage_prices r WHERE r.ledger_transaction_id = t.id)
           <> (SELECT sum(amount) FROM ledger_entries e WHERE e.transaction_id = t.id AND e.amount > 0)
    """
    assert sql(database, per_transaction) == [(0,)]


def test_recording_twice_bills_once(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2])
    claimed, (first, second) = claim(database)
    record(database, [answer(claimed, first)])
    record(database, [answer(claimed, first), answer(claimed, second)])
    again = record(database, [answer(claimed, first), answer(claimed, second)])

    assert again == Recorded(stale=frozenset(), done=frozenset({claimed.id}), finished_batches=())
    assert sql(database, "SELECT count(*), count(DISTINCT request_id) FROM results") == [(2, 2)]
    assert sql(database, "SELECT sum(quantity) FROM metered_usage") == [(24,)]
    assert sql(database, "SELECT count(*), sum(quantity) FROM usage_prices") == [(4, 24)]
    assert sql(database, "SELECT num_succeeded, num_completion_tokens FROM batches") == [(2, 10)]
    assert sql(database, "SELECT count(*) FROM outbox") == [(1,)]


@pytest.mark.parametrize(
    "loss",
    [
        "UPDATE slices SET lease_epoch = 2",
        "UPDATE slices SET status = 'pending'",
        "UPDATE slices SET group_id = 'another@here'",
    ],
)
def test_a_stale_epoch_writes_nothing(database: Engine, tenant: SeededTenant, loss: str) -> None:
    seed_batch(database, tenant, [1])
    claimed, (request,) = claim(database)
    sql(database, loss)
    recorded = record(database, [answer(claimed, request)])
    assert recorded == Recorded(stale=frozenset({claimed.id}), done=frozenset(), finished_batches=())
    for table in ("results", "metered_usage", "usage_prices", "rating_counters", "ledger_entries", "outbox"):
        assert sql(database, f"SELECT count(*) FROM {table}") == [(0,)], table
    assert sql(database, "SELECT outcome FROM requests") == [(None,)]
    assert sql(database, "SELECT num_succeeded FROM batches") == [(0,)]


def test_a_lost_slice_does_not_hold_up_the_others(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1, 1])
    lost, (of_lost,) = claim(database)
    held, (of_held,) = claim(database)
    sql(database, f"UPDATE slices SET lease_epoch = 2 WHERE id = {lost.id}")
    recorded = record(database, [answer(lost, of_lost), answer(held, of_held)])
    assert (recorded.stale, recorded.done) == ({lost.id}, {held.id})
    assert sql(database, "SELECT request_id FROM results") == [(of_held.id,)]


def test_the_last_outcome_ends_the_slice_the_attempt_and_the_batch(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [2, 1])
    first, requests = claim(database)
    second, others = claim(database)
    done = record(database, [answer(first, request) for request in requests])
    assert (done.done, done.finished_batches) == ({first.id}, ())
    assert sql(database, "SELECT status, lease_expires_at FROM slices ORDER BY id")[0] == ("done", None)
    assert sql(database, 'SELECT "end", ended_at IS NULL FROM attempts ORDER BY slice_id') == [
        ("finished", False),
        (None, True),
    ]
    assert record(database, [answer(second, others[0])]).finished_batches == (batch_id,)
    assert sql(database, "SELECT queue, task, args FROM outbox") == [("control", "control.finalize", [batch_id])]


def test_what_failed_is_recorded_with_its_reason_and_not_billed(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [3])
    claimed, (first, second, third) = claim(database)
    message = "The engine crashed \0 and \ud800."
    failed = RequestOutcome(
        first.id,
        first.custom_id,
        claimed,
        OutcomeKind.FAILED,
        error_code="engine_crashed",
        error_message=message,
        waste=(WastePart(WasteCause.CRASH, 11, 4), WastePart(WasteCause.RECOMPUTED, 9)),
    )
    record(
        database,
        [
            failed,
            replace(failed, request_id=second.id, kind=OutcomeKind.CANCELLED, error_code=None, error_message=None),
            answer(claimed, third),
        ],
    )
    assert sql(database, "SELECT outcome, error_code, error_message FROM requests ORDER BY id") == [
        ("failed", "engine_crashed", "The engine crashed \ufffd and ?."),
        ("cancelled", None, None),
        ("succeeded", None, None),
    ]
    assert sql(database, "SELECT count(*), sum(quantity) FROM metered_usage") == [(2, 12)]
    assert sql(database, "SELECT num_succeeded, num_unsuccessful FROM batches") == [(1, 2)]
    assert sql(database, "SELECT num_succeeded, num_unsuccessful, num_wasted_tokens FROM attempts") == [(1, 2, 22)]
    wasted = "SELECT cause, sum(num_tokens), sum(engine_ms), count(*) FROM waste GROUP BY cause ORDER BY cause"
    assert sql(database, wasted) == [("crash", 22, 8, 2), ("recomputed", 18, None, 2)]
    assert sql(database, "SELECT engine_ms FROM attempts") == [(3,)]
    assert sql(database, "SELECT status FROM slices") == [("done",)]


def test_answers_have_the_price_of_the_moment(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2])
    claimed, (first, second) = claim(database)
    record(database, [answer(claimed, first)])
    card = "INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount,"
    sql(database, f"{card} effective_from) VALUES ('{MODEL}', 'USD', 2, 1, 3, 0, now())")
    sql(database, f"{card} effective_from) VALUES ('{MODEL}', 'USD', 9, 9, 9, 0, now() + interval '1 h')")
    record(database, [answer(claimed, second)])
    assert sql(database, "SELECT amount FROM usage_prices ORDER BY request_id, meter") == [
        (7 * INPUT / 10**6,),
        (5 * OUTPUT / 10**6,),
        (Decimal("0.000014"),),
        (Decimal("0.000015"),),
    ]


def test_an_answer_that_nothing_prices_is_kept_unrated_and_reported(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1], model="unpriced")
    claimed, (request,) = claim(database, "unpriced")
    with structlog.testing.capture_logs() as logs:
        record(database, [answer(claimed, request)])
    assert sql(database, "SELECT outcome FROM requests") == [("succeeded",)]
    assert sql(database, "SELECT count(*), sum(quantity) FROM metered_usage") == [(2, 12)]
    assert sql(database, "SELECT count(*) FROM usage_prices") == [(0,)]
    assert [(log["log_level"], log["model"], log["requests"]) for log in logs] == [("error", "unpriced", [request.id])]


def test_a_batch_keeps_the_price_that_was_agreed(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    sql(database, "UPDATE batches SET rate_card_id = (SELECT min(id) FROM rate_cards)")
    card = "INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount)"
    sql(database, f"{card} VALUES ('{MODEL}', 'USD', 2, 1, 3, 0)")
    claimed, (request,) = claim(database)
    record(database, [answer(claimed, request)])
    assert sql(database, "SELECT amount FROM usage_prices WHERE meter = 'output'") == [(5 * OUTPUT / 10**6,)]


def test_recording_again_waits_for_a_commit_that_is_still_on_its_way(database: Engine, tenant: SeededTenant) -> None:
    """As after a connection that died while committing: the first transaction may end either way."""
    seed_batch(database, tenant, [1])
    claimed, (request,) = claim(database)
    again: list[Recorded] = []
    first = database.connect()
    transaction = first.begin()
    record_outcomes(first, [answer(claimed, request)])
    retry = threading.Thread(target=lambda: again.append(record(database, [answer(claimed, request)])))
    retry.start()
    while not sql(database, "SELECT 1 FROM pg_locks WHERE NOT granted"):
        assert retry.is_alive()
    transaction.commit()
    first.close()
    retry.join(30)
    assert again == [Recorded(stale=frozenset(), done=frozenset({claimed.id}), finished_batches=())]
    assert sql(database, "SELECT count(*) FROM results") == [(1,)]
    assert sql(database, "SELECT num_succeeded FROM batches") == [(1,)]
