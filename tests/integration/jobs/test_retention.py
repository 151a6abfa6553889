"""Months that are no longer kept are dropped, and every sum still adds up."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx2
import pytest
from older_usage import write_as_older_groups
from running_gateways import error_of, new_tenant, serve, wait_for
from seeds import MODEL, sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from submitting import Bench
from typer.testing import CliRunner

from pipeline.billing.card_files import read_card_file
from pipeline.billing.invoices import void_invoice
from pipeline.billing.reconciliation import reconcile
from pipeline.billing.reports import DroppedUsageError, Month, bills, usage_report
from pipeline.billing.rerating import rate_by_card
from pipeline.billing.rollups import rebuild
from pipeline.cli import app
from pipeline.jobs.audit import audit
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.retention import OldMonth, drop_old_months, old_months
from pipeline.jobs.upkeep import keep_up
from pipeline.settings import get_settings
from pipeline.tables.partitions import PARTITIONED_TABLES
from pipeline.tables.session import transaction

MONTHS_AGO = 20
WAITING = """
    SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""


def age(database: Engine) -> str:
    """Have everything that is there be of 20 months ago; returns that month."""
    sql(database, "SELECT make_request_partitions(request_month(now()) - :n)", n=MONTHS_AGO)
    for table in PARTITIONED_TABLES:
        column = "id" if table == "requests" else "request_id"
        sql(database, f"UPDATE {table} SET {column} = {column} - (CAST(:n AS bigint) << 40)", n=MONTHS_AGO)
    for moment in (
        "batches.created_at",
        "batches.in_progress_at",
        "usage_events.occurred_at",
        "results.created_at",
        "ledger_transactions.created_at",
    ):
        table, column = moment.split(".")
        sql(database, f"UPDATE {table} SET {column} = {column} - make_interval(months => :n)", n=MONTHS_AGO)
    rebuild(database)
    [[name]] = sql(
        database, "SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(months => :n), 'YYYY_MM')", n=MONTHS_AGO
    )
    return str(name)


def bill(database: Engine, number: str = "INV-1") -> None:
    """A final invoice for each month in which something was used."""
    sql(
        database,
        "INSERT INTO invoices (id, tenant_id, currency, month_start, status, number, customer, supplier, issued_at,"
        " exact, total)"
        " SELECT DISTINCT CAST(:number AS text), tenant_id, 'USD',"
        " CAST(date_trunc('month', occurred_at, 'UTC') AS date), 'final', CAST(:number AS text),"
        ' CAST(\'{"name": "acme"}\' AS jsonb), CAST(\'{"name": "us"}\' AS jsonb), now(), 0, 0 FROM metered_usage',
        number=number,
    )


@pytest.fixture
def ended(bench: Bench) -> tuple[Bench, str]:
    """A batch that has ended; its id."""
    batch_id = bench.run()
    bench.answer(bench.claim())
    finalize(batch_id, bench.engine)
    sql(bench.engine, "DELETE FROM outbox")
    return bench, batch_id


def num_rows(database: Engine) -> list[int]:
    return [sql(database, f"SELECT count(*) FROM {table}")[0][0] for table in PARTITIONED_TABLES]


def test_without_a_setting_everything_is_kept(ended: tuple[Bench, str]) -> None:
    age(ended[0].engine)
    assert drop_old_months(ended[0].engine) == []
    assert num_rows(ended[0].engine) == [0, 0, 3, 3]


def test_what_is_not_old_enough_is_kept(ended: tuple[Bench, str]) -> None:
    age(ended[0].engine)
    bill(ended[0].engine)
    assert old_months(ended[0].engine, months=MONTHS_AGO) == []
    assert [month.kept_because for month in old_months(ended[0].engine, months=MONTHS_AGO - 1)] == [None]


@pytest.mark.parametrize(("as_older_groups", "rows"), [("false", 0), ("true", 9), ("mod(request_id, 3) = 1", 3)])
def test_a_month_is_dropped_when_nothing_keeps_it_and_all_sums_still_hold(
    ended: tuple[Bench, str], as_older_groups: str, rows: int
) -> None:
    database = ended[0].engine
    write_as_older_groups(database, as_older_groups)
    name = age(database)
    rollups = "SELECT * FROM usage_rollups ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    before = sql(database, rollups)

    [kept] = drop_old_months(database, months=12)
    assert kept == OldMonth(name, 3, f"no final invoice has what was used by acme in {name.replace('_', '-')}")
    assert num_rows(database) == [rows, rows, 3, 3]

    bill(database)
    assert drop_old_months(database, months=12) == [OldMonth(name, 3, None)]
    assert num_rows(database) == [0, 0, 0, 0]
    assert sql(database, "SELECT act, object FROM audit_log") == [("month.drop", name)]
    assert sql(database, "SELECT to_regclass('partitions.requests_' || :name)", name=name) == [(None,)]
    assert [found for found in audit(database, at_rest=True).findings if found.violations] == []
    assert sql(database, rollups) == before
    assert rebuild(database).num_corrected == 0
    assert drop_old_months(database, months=12) == []
    with Session(database) as session:
        month = Month.parse(name.replace("_", "-"))
        for report in (usage_report, bills):
            with pytest.raises(DroppedUsageError, match="no longer kept"):
                report(session, month)
    assert reconcile(database).drifts == ()


def test_a_correction_that_is_on_no_invoice_yet_keeps_its_month(ended: tuple[Bench, str]) -> None:
    database = ended[0].engine
    month = Month.parse(age(database).replace("_", "-"))
    bill(database)
    with transaction() as session:
        card = read_card_file(f"plan: default\ncurrency: USD\nmodels: {{{MODEL}: {{input: 8, output: 8}}}}\n")
        assert rate_by_card(session, month, card, publishes=True).differences[0].change > 0

    [kept] = drop_old_months(database, months=12)
    assert kept.kept_because == f"no final invoice has the corrections of what was used by acme in {month}"

    # As if the invoice had been issued after it.
    sql(database, "UPDATE ledger_transactions SET created_at = created_at - interval '1 h' WHERE period IS NOT NULL")
    assert [month.kept_because for month in drop_old_months(database, months=12)] == [None]
    assert num_rows(database) == [0, 0, 0, 0]


def test_an_invoice_that_is_made_void_while_its_month_is_dropped_keeps_the_month(ended: tuple[Bench, str]) -> None:
    database = ended[0].engine
    name = age(database)
    bill(database)
    with transaction() as voiding, ThreadPoolExecutor(1) as pool:
        void_invoice(voiding, "INV-1", "wrong address", datetime.now(UTC))
        dropped = pool.submit(drop_old_months, database, months=12)
        wait_for(lambda: sql(database, WAITING) != [])
        voiding.commit()
        [kept] = dropped.result(60)

    assert kept == OldMonth(name, 3, f"no final invoice has what was used by acme in {name.replace('_', '-')}")
    assert num_rows(database) == [0, 0, 3, 3]


def test_a_batch_that_has_not_ended_keeps_its_month(bench: Bench) -> None:
    bench.run()
    age(bench.engine)
    [month] = drop_old_months(bench.engine, months=12)
    assert month.kept_because == "1 of its batches have not ended"


def test_what_was_there_before_requests_carried_their_month_is_emptied(ended: tuple[Bench, str]) -> None:
    database = ended[0].engine
    age(database)
    for table in PARTITIONED_TABLES:
        column = "id" if table == "requests" else "request_id"
        sql(database, f"UPDATE {table} SET {column} = {column} & ((1::bigint << 40) - 1)".replace("::", "\\:\\:"))
    bill(database)
    found = drop_old_months(database, months=12)
    assert [(month.name, month.kept_because) for month in found] == [("before", None), (found[1].name, None)]
    assert num_rows(database) == [0, 0, 0, 0]
    assert [found for found in audit(database).findings if found.violations] == []


def test_files_of_a_dropped_batch_say_that_they_are_no_longer_kept(ended: tuple[Bench, str]) -> None:
    bench, batch_id = ended
    age(bench.engine)
    bill(bench.engine)
    drop_old_months(bench.engine, months=12)
    with serve() as address:
        tenant = new_tenant(address, "acme")
        batch = tenant.client.batches.retrieve(batch_id)
        assert batch.request_counts is not None
        assert (batch.status, batch.request_counts.completed) == ("completed", 3)
        response: httpx2.Response = tenant.http.get(f"/v1/files/{batch.output_file_id}/content")
        tenant.client.close()
        tenant.http.close()
    assert response.status_code == 410
    assert error_of(response)["code"] == "file_dropped"


def test_the_command_says_what_it_would_drop_and_drops_it(ended: tuple[Bench, str]) -> None:
    def run(*options: str) -> list[dict[str, object]]:
        result = CliRunner().invoke(app, ["retention", "run", "--months", "12", "--json", *options])
        assert result.exit_code == 0, result.exception
        records: list[dict[str, object]] = json.loads(result.stdout)
        return records

    name = age(ended[0].engine)
    bill(ended[0].engine)
    assert run("--dry-run") == [{"month": name.replace("_", "-"), "requests": 3, "result": "to be dropped"}]
    assert num_rows(ended[0].engine) == [0, 0, 3, 3]
    assert run() == [{"month": name.replace("_", "-"), "requests": 3, "result": "dropped"}]
    assert run() == []
    assert CliRunner().invoke(app, ["retention", "run"]).exit_code == 1


def test_the_daily_upkeep_does_all_of_it(ended: tuple[Bench, str], settings_env: pytest.MonkeyPatch) -> None:
    database = ended[0].engine
    age(database)
    bill(database)
    sql(database, "DELETE FROM usage_rollups WHERE starts_at > now() - interval '1 year'")
    ended[0].run()
    ended[0].answer(ended[0].claim())
    sql(database, "DELETE FROM usage_rollups WHERE starts_at > now() - interval '1 year'")
    settings_env.setenv("RYZANSTEIN_RETENTION_MONTHS", "12")
    get_settings.cache_clear()
    assert keep_up(database) == {"months_made": 0, "rollups_corrected": 6, "months_dropped": 1}
    assert keep_up(database) == {"months_made": 0, "rollups_corrected": 0, "months_dropped": 0}
