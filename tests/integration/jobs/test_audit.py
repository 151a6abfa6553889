from __future__ import annotations

import json
from pathlib import Path

import pytest
from older_usage import write_as_older_groups
from running_groups import running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.jobs import audit as auditing
from pipeline.jobs.audit import INVARIANTS, audit
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.invariants import AT_REST
from workers.backends.echo import EchoEngine

ROLLUPS = "roll-ups are the sum of the usage"
NO_USAGE = (
    "tenant_id = NULL, num_uncached_tokens = NULL, num_cached_tokens = NULL, num_output_tokens = NULL, engine_ms = NULL"
)
NO_PRICE = (
    "rate_card_id = NULL, ledger_transaction_id = NULL, uncached_amount = NULL, cached_amount = NULL,"
    " output_amount = NULL"
)
#: What is broken by hand, and the invariants that see it; `:first` to `:third` are ids of requests. Triggers and
#: foreign keys, which refuse some of it, are off.
DAMAGE = {
    "INSERT INTO invoices (id, tenant_id, currency, month_start, status, number, customer, supplier, issued_at, exact,"
    " total) SELECT 'i', id, 'USD', '2026-01-01', 'final', 'INV-2026-000001', '{}', '{}', now(), 5, 5"
    " FROM tenants LIMIT 1": {
        "an issued invoice is the sum of its lines, and a line of what it is made of",
        "the ledger has each invoice that counts as it is to be paid, and none that was taken back",
    },
    "INSERT INTO invoice_numbers VALUES (2026, 3)": {"numbers of invoices leave no gap in a year"},
    "UPDATE batches SET num_released_tokens = 1000": {
        "a batch frees no more of its tenant's limit than its requests that ended"
    },
    "INSERT INTO audit_log VALUES (7, now(), 'x', 'x', 'x', '{}', 'x', 'x')": {
        "each administrative act follows from the one before"
    },
    "DELETE FROM results WHERE request_id = :first": {
        ROLLUPS,
        "every ledger transaction is the sum of the prices that name it",
        "the tokens of a batch are the sum of its usage",
        "a request has an answer if it succeeded, and no other has one",
        "an attempt counts the answers that it recorded",
    },
    "UPDATE requests SET outcome = 'failed' WHERE id = :second": {
        "a request has an answer if it succeeded, and no other has one",
        "the counters of a batch are those of its requests",
    },
    "UPDATE requests SET outcome = NULL WHERE id = :second": {
        "a batch frees no more of its tenant's limit than its requests that ended",
        "a batch that has ended has an outcome for every request",
        "a request has an answer if it succeeded, and no other has one",
        "the counters of a batch are those of its requests",
        "a slice counts its requests without an outcome, and is done when there are none",
    },
    "UPDATE requests SET slice_id = NULL WHERE id = :third": {
        "every request is in one slice of its batch",
        "a slice counts its requests without an outcome, and is done when there are none",
    },
    "UPDATE batches SET num_succeeded = num_succeeded - 1": {"the counters of a batch are those of its requests"},
    "UPDATE batches SET num_completion_tokens = num_completion_tokens + 8": {
        "the tokens of a batch are the sum of its usage"
    },
    "UPDATE slices SET num_unfinished = 1 WHERE id = 1": {
        "a slice counts its requests without an outcome, and is done when there are none"
    },
    "UPDATE slices SET status = 'claimed', lease_expires_at = now() - interval '1 hour' WHERE id = 1": {
        "a slice counts its requests without an outcome, and is done when there are none",
        "no lease outlives its owner by more than its length",
    },
    # An answer without usage, with part of it, with what it does not say, and with that of another tenant.
    f"UPDATE results SET {NO_USAGE}, {NO_PRICE} WHERE request_id = :first": {
        ROLLUPS,
        "every answer has its usage once, and of its own prompt",
        "every ledger transaction is the sum of the prices that name it",
        "the tokens of a batch are the sum of its usage",
    },
    "UPDATE results SET num_output_tokens = NULL WHERE request_id = :first": {
        ROLLUPS,
        "what stands in the row of an answer is whole",
        "what is metered of an answer is what the answer says",
        "the tokens of a batch are the sum of its usage",
    },
    "UPDATE results SET num_output_tokens = num_output_tokens + 1 WHERE request_id = :first": {
        ROLLUPS,
        "what is metered of an answer is what the answer says",
        "every amount is its quantity at the price of its card",
        "the tokens of a batch are the sum of its usage",
    },
    "UPDATE results SET num_uncached_tokens = 99 WHERE request_id = :first": {
        ROLLUPS,
        "every answer has its usage once, and of its own prompt",
        "every amount is its quantity at the price of its card",
        "the tokens of a batch are the sum of its usage",
    },
    "UPDATE results SET tenant_id = 'another' WHERE request_id = :first": {
        ROLLUPS,
        "what stands in the row of an answer is whole",
    },
    # The price of an answer: none, half of one, another amount, of nowhere, and of another transaction.
    f"UPDATE results SET {NO_PRICE} WHERE request_id = :first": {
        ROLLUPS,
        "all usage has its price, of its own quantity and each revision once",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE results SET output_amount = NULL WHERE request_id = :first": {
        ROLLUPS,
        "what stands in the row of an answer is whole",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE results SET output_amount = output_amount * 2 WHERE request_id = :first": {
        ROLLUPS,
        "every amount is its quantity at the price of its card",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE results SET num_cached_tokens = 0, cached_amount = 1 WHERE request_id = :second": {
        "what stands in the row of an answer is whole",
    },
    "UPDATE results SET ledger_transaction_id = 99 WHERE request_id = :first": {
        "nothing is kept of a request that is not there",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE results SET rate_card_id = 99 WHERE request_id = :first": {
        ROLLUPS,
        "nothing is kept of a request that is not there",
        "every amount is its quantity at the price of its card",
    },
    # The same usage in both forms, and the same price.
    """INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id,
                                 service_class, model, group_id, engine_ms, occurred_at)
       SELECT request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class, model, group_id,
              engine_ms, occurred_at
       FROM metered_usage WHERE request_id = :first""": {
        ROLLUPS,
        "every answer has its usage once, and of its own prompt",
        "all usage has its price, of its own quantity and each revision once",
        "the tokens of a batch are the sum of its usage",
    },
    """INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,
                                currency)
       SELECT request_id, meter, rate_card_id, ledger_transaction_id, rated_quantity, unit_price, amount, currency
       FROM usage_prices WHERE request_id = :first AND meter = 'output'""": {
        "all usage has its price, of its own quantity and each revision once",
    },
    # What groups of older versions have written, as they have of the third.
    "DELETE FROM usage_events WHERE request_id = :third AND meter = 'output'": {
        "nothing is kept of a request that is not there",
        ROLLUPS,
        "every answer has its usage once, and of its own prompt",
        "every ledger transaction is the sum of the prices that name it",
        "the tokens of a batch are the sum of its usage",
    },
    "UPDATE usage_events SET quantity = quantity + 1 WHERE request_id = :third AND meter = 'output'": {
        ROLLUPS,
        "what is metered of an answer is what the answer says",
        "all usage has its price, of its own quantity and each revision once",
        "the tokens of a batch are the sum of its usage",
    },
    "DELETE FROM rated_lines WHERE request_id = :third": {
        ROLLUPS,
        "all usage has its price, of its own quantity and each revision once",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE rated_lines SET amount = amount * 2 WHERE request_id = :third AND meter = 'output'": {
        ROLLUPS,
        "every amount is its quantity at the price of its card",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE ledger_entries SET amount = amount + 1 WHERE amount > 0": {
        "every ledger transaction sums to zero",
        "every ledger transaction is the sum of the prices that name it",
    },
    """INSERT INTO credit_notes (id, tenant_id, batch_id, reason, currency, amount, ledger_transaction_id)
        SELECT 'c', b.tenant_id, b.id, 'missed_window', 'USD', 1, (SELECT min(id) FROM ledger_transactions)
        FROM batches b""": {
        "a window is credited if it was missed",
        "every ledger transaction is the sum of the prices that name it",
    },
    "UPDATE attempts SET num_succeeded = 0": {"an attempt counts the answers that it recorded"},
    "UPDATE results SET created_at = now() + interval '1 hour' WHERE request_id = :first": {
        ROLLUPS,
        "every answer was recorded by the group of its attempt, before that ended",
    },
    "UPDATE results SET group_id = 'group-1@here' WHERE request_id = :first": {
        "every answer was recorded by the group of its attempt, before that ended"
    },
    "UPDATE rates SET minimum = 1": {
        "a published rate card is what was published",
        "what was used before a rated line is what its rate had rated by then",
    },
    "INSERT INTO waste (slice_id, lease_epoch, batch_id, tenant_id, model, group_id, cause, num_tokens)"
    " SELECT slice_id, lease_epoch, batch_id, '', '', '', 'crash', 1 FROM attempts WHERE slice_id = 1": {
        "what an attempt threw away has its causes"
    },
    "DELETE FROM attempts WHERE slice_id = 1": {"every answer was recorded by an attempt"},
    "INSERT INTO partial_outputs (request_id, position, num_tokens, data) VALUES (:first, 0, 4, 'x')": {
        "nothing is kept of an answer in parts once there is an outcome"
    },
    "UPDATE usage_rollups SET num_events = num_events + 1 WHERE period = 'hour'": {ROLLUPS},
    "INSERT INTO holds (slice_id, budget_id, period_start, amount) VALUES (1, 'b', '2000-01-01', 1)": {
        "nothing is held for a slice that is not claimed"
    },
    "INSERT INTO budget_uses (budget_id, period_start, held) VALUES ('b', '2000-01-01', 1)": {
        "what is held of a budget is the sum of its holds"
    },
    """WITH budget AS (
        INSERT INTO budgets (id, tenant_id, batch_id, currency, period, amount, is_hard, is_prepaid)
        SELECT 'b', tenant_id, id, 'USD', 'total', 1, true, false FROM batches RETURNING id
    ) INSERT INTO budget_uses (budget_id, period_start, spent) SELECT id, '2000-01-01', 0.5 FROM budget""": {
        "the budget of a batch is spent by what it cost, and not passed"
    },
    "UPDATE batches SET status = 'finalizing'": {"every batch has ended"},
    "INSERT INTO outbox (queue, task, args) VALUES ('control', 'x', '[]')": {"every message is published"},
    """UPDATE attempts SET "end" = NULL WHERE slice_id = 1""": {"every attempt has ended"},
    """UPDATE groups SET state = 'ready', info = '{"running": 1, "waiting": 0, "kv_tokens_used": 16}'""": {
        "no engine holds anything"
    },
}


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


@pytest.fixture
def finished(database: Engine, tenant: SeededTenant, tmp_path: Path) -> str:
    """A batch of two slices that a group has answered, the last request of it a group of an older version."""
    batch_id = seed_batch(database, tenant, [2, 1], params={"max_tokens": 3})
    with running_group(database, EchoEngine(byte_level(tmp_path / "tiny"))):
        wait_for(lambda: sql(database, "SELECT 1 FROM slices HAVING bool_and(status = 'done')"))
    finalize(batch_id, database)
    sql(database, "DELETE FROM outbox")
    write_as_older_groups(database, "request_id = (SELECT max(id) FROM requests)")
    return batch_id


@pytest.mark.usefixtures("finished")
def test_what_ran_as_it_should_agrees_and_every_damage_is_found(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "TICKET_SECONDS", 0.0)
    assert audit(database, at_rest=True).violations == []
    seen = set()
    request_ids = [request_id for (request_id,) in sql(database, "SELECT id FROM requests ORDER BY id")]
    for statement, broken in DAMAGE.items():
        with database.connect() as conn, conn.begin() as transaction:
            conn.exec_driver_sql("SET LOCAL session_replication_role = replica")
            for name, request_id in zip((":first", ":second", ":third"), request_ids, strict=True):
                statement = statement.replace(name, str(request_id))
            conn.exec_driver_sql(statement)
            found = {
                one.statement
                for one in (*INVARIANTS, *AT_REST)
                if not auditing.look(conn, one, {"lease_seconds": 15.0, "sweep_seconds": 5.0}).holds
            }
            assert found == broken, statement
            seen |= found
            transaction.rollback()
    assert seen == {one.statement for one in (*INVARIANTS, *AT_REST)}


@pytest.mark.usefixtures("finished")
def test_an_answer_may_hold_a_nul_and_a_backslash_before_one(database: Engine) -> None:
    with database.begin() as conn:
        conn.exec_driver_sql(
            r"""UPDATE results SET body = replace(body, '"usage":', '"\u0000 \\u0000": 0, "usage":')"""
        )
    assert audit(database).violations == []


def test_a_slice_that_nobody_is_told_of_is_found(
    database: Engine, tenant: SeededTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "TICKET_SECONDS", 0.0)
    seed_batch(database, tenant, [1, 1])
    violations = audit(database).violations
    assert [(one.subject, one.found) for _, one in violations] == [
        ("model tiny", "2 slices wait, and there are 0 tickets")
    ]


def test_without_redis_tickets_are_not_checked_and_all_else_is(
    database: Engine, tenant: SeededTenant, settings_env: pytest.MonkeyPatch
) -> None:
    from pipeline.settings import get_settings

    seed_batch(database, tenant, [1])
    settings_env.setenv("RYZANSTEIN_REDIS_URL", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    findings = audit(database).findings
    assert [one.unchecked for one in findings if one.unchecked] == ["Redis is away"]
    assert len(findings) == len(INVARIANTS) + 1


@pytest.mark.usefixtures("finished")
def test_the_command_says_what_agrees_and_what_does_not(
    database: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from pipeline.cli.auditing import audit as command

    monkeypatch.setattr(auditing, "TICKET_SECONDS", 0.0)
    command(at_rest=True, data_dir=None, as_json=False)
    assert "Everything that was looked at agrees." in capsys.readouterr().out
    sql(database, "UPDATE batches SET num_succeeded = 0")
    with pytest.raises(typer.Exit):
        command(at_rest=False, data_dir=None, as_json=False)
    shown = capsys.readouterr()
    assert "counts 3 requests, 0 succeeded and 0 not; there are 3, 3 and 0" in shown.out
    assert "report it" in shown.err
    with pytest.raises(typer.Exit):
        command(at_rest=False, data_dir=None, as_json=True)
    broken = [one for one in json.loads(capsys.readouterr().out) if one["violations"]]
    assert [one["invariant"] for one in broken] == ["the counters of a batch are those of its requests"]
