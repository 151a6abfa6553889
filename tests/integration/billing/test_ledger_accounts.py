from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, cast

import psycopg
from psycopg import Cursor
from running_gateways import wait_for
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.ledger import open_accounts, post_receivable

WAITING = """
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE a.datname = current_database() AND NOT l.granted
"""


@contextmanager
def driver_cursor(database: Engine) -> Iterator[Cursor[Any]]:
    with database.begin() as conn:
        yield cast("psycopg.Connection[Any]", conn.connection.driver_connection).cursor()


def test_two_who_open_accounts_of_several_tenants_wait_for_each_other_one_way_alone(database: Engine) -> None:
    first, second = seed_tenant(database, "first"), seed_tenant(database, "second")

    def open_second() -> None:
        with driver_cursor(database) as cursor:
            post(cursor, second, "b")
            open_accounts(cursor, second.id, "USD")

    with ThreadPoolExecutor(1) as pool:
        with driver_cursor(database) as cursor:
            post(cursor, first, "a")
            other = pool.submit(open_second)
            wait_for(lambda: sql(database, WAITING))
            open_accounts(cursor, second.id, "USD")
            post(cursor, second, "c")
        other.result(timeout=30)

    kinds = sql(database, "SELECT kind, count(*) FROM ledger_accounts GROUP BY kind ORDER BY kind")
    assert kinds == [("receivable", 2), ("revenue", 1)]
    assert sql(database, "SELECT count(*) FROM ledger_entries") == [(6,)]


def post(cursor: Cursor[Any], tenant: SeededTenant, key: str) -> None:
    post_receivable(cursor, tenant_id=tenant.id, currency="USD", amount=Decimal(1), idempotency_key=key)
