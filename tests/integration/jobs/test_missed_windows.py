from __future__ import annotations

import threading
from decimal import Decimal

import pytest
from seeds import sql
from submitting import Bench

from pipeline.jobs.audit import audit
from pipeline.jobs.ending import end_waiting_requests
from pipeline.jobs.finalizing import finalize
from pipeline.settings import get_settings
from pipeline.tables.batches import BatchStatus
from pipeline.tables.requests import OutcomeKind


def pass_window(bench: Bench, batch_id: str) -> None:
    sql(bench.engine, "UPDATE batches SET expires_at = now() - interval '1 s' WHERE id = :id", id=batch_id)


def credits(bench: Bench) -> list[tuple[str, str, str, Decimal]]:
    rows = sql(bench.engine, "SELECT batch_id, reason, currency, amount FROM credit_notes ORDER BY created_at")
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def billed(bench: Bench) -> Decimal:
    return Decimal(sql(bench.engine, "SELECT sum(amount) FROM usage_prices")[0][0])


def owed(bench: Bench) -> Decimal:
    rows = sql(
        bench.engine,
        "SELECT sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id"
        " WHERE a.kind = 'receivable'",
    )
    return Decimal(rows[0][0])


def test_a_batch_that_expires_is_credited_a_part_of_what_was_billed(
    bench: Bench, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("RYZANSTEIN_MISSED_WINDOW_CREDIT", "0.333")
    get_settings.cache_clear()
    batch_id = bench.run(3)
    claimed = bench.claim()
    bench.answer(claimed, 2)
    pass_window(bench, batch_id)
    bench.answer(claimed, kind=OutcomeKind.EXPIRED)
    assert finalize(batch_id, bench.engine) is BatchStatus.EXPIRED

    exact = billed(bench) * Decimal("0.333")
    [(credited, reason, currency, amount)] = credits(bench)
    assert (credited, reason, currency) == (batch_id, "missed_window", "USD")
    assert abs(amount - exact) <= Decimal("5e-16")
    assert owed(bench) == billed(bench) - amount
    wrong = {statement for statement, _ in audit(bench.engine).violations}
    assert wrong <= {"no slice waits without a ticket"}


def test_a_batch_that_completes_late_is_credited_and_one_in_time_is_not(bench: Bench) -> None:
    late, in_time = bench.run(1), bench.run(1)
    for _ in range(2):
        bench.answer(bench.claim())
    pass_window(bench, late)
    for batch_id in (late, in_time):
        assert finalize(batch_id, bench.engine) is BatchStatus.COMPLETED
    [(credited, _, _, amount)] = credits(bench)
    assert credited == late
    assert amount == billed(bench) / 2 / 4  # of two alike, a quarter


def test_a_credit_is_given_once_however_many_close_the_batch(bench: Bench) -> None:
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    pass_window(bench, batch_id)
    threads = [threading.Thread(target=finalize, args=(batch_id, bench.engine)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(credits(bench)) == 1
    # Even if it were opened and closed again, the ledger would refuse.
    sql(bench.engine, "UPDATE batches SET status = 'in_progress'")
    with pytest.raises(Exception, match="uq_ledger_transactions_idempotency_key"):
        finalize(batch_id, bench.engine)
    assert len(credits(bench)) == 1


def test_what_cost_nothing_or_was_cancelled_is_not_credited(bench: Bench) -> None:
    nothing, cancelled = bench.run(1), bench.run(2)
    pass_window(bench, nothing)
    end_waiting_requests(nothing, OutcomeKind.EXPIRED, bench.engine)
    assert bench.batch(nothing).status is BatchStatus.EXPIRED
    bench.answer(bench.claim(), 1)
    sql(
        bench.engine,
        "UPDATE batches SET status = 'cancelling', cancelling_at = now(), expires_at = now() WHERE id = :id",
        id=cancelled,
    )
    sql(bench.engine, "UPDATE slices SET status = 'pending' WHERE batch_id = :id", id=cancelled)
    end_waiting_requests(cancelled, OutcomeKind.CANCELLED, bench.engine)
    assert bench.batch(cancelled).status is BatchStatus.CANCELLED
    assert credits(bench) == []
