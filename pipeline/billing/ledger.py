"""The double-entry ledger: transactions whose entries sum to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from psycopg import Cursor
from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.tables import LedgerTransaction
from pipeline.tables.arrays import numbers, words


class Account(StrEnum):
    """Kinds of accounts. A debit is positive, a credit negative."""

    RECEIVABLE = "receivable"  #: What a tenant owes.
    REVENUE = "revenue"  #: What the operator earned.
    CREDIT = "credit"  #: What is left of a grant of credit, which is owed to the tenant: negative.
    GRANTED = "granted"  #: What the operator gave, or was paid ahead.
    EXPIRED = "expired"  #: What expired of it unused: negative.
    BILLED = (
        "billed"  #: What of a tenant's receivable is on invoices, against it: the two are what is yet to be billed.
    )
    INVOICED = "invoiced"  #: What a tenant's invoices say is to be paid.
    ROUNDING = "rounding"  #: What rounding invoices took from the operator, or (negative) gave.


class Posting(StrEnum):
    """Why a transaction was posted."""

    USAGE = "usage"  #: Outcomes were recorded; also for usage that was rated later.
    ADJUSTMENT = "adjustment"  #: Lines were rated again.
    GRANT = "grant"  #: Credit was given.
    CREDIT_SPENT = "credit_spent"  #: Credit paid for usage.
    CREDIT_EXPIRED = "credit_expired"  #: Credit reached its end.
    INVOICE = "invoice"  #: An invoice was issued, or taken back; see `pipeline/billing/closing.py`.
    CREDIT_NOTE = "credit_note"  #: Part of a cost was given back; see `credit_notes`.


class Accounts(NamedTuple):
    """Ids of the accounts that usage of a tenant in a currency is posted to."""

    receivable: int
    revenue: int


class UsageSum(NamedTuple):
    """What answers of a tenant that are written together cost: one transaction of the ledger."""

    idempotency_key: str
    tenant_id: str
    accounts: Accounts
    amount: Decimal


#: The start of a statement that writes what the ledger has the sums of; its rows find their transactions in `posted`,
#: by key. A key that was used before is a UniqueViolation. `posting_values` gives its parameters.
POSTED: Final = """
    WITH sums AS (
        SELECT * FROM unnest(%(posted_keys)s::text[], %(posted_tenants)s::text[], %(receivables)s::bigint[],
                             %(revenues)s::bigint[], %(posted_amounts)s::numeric[])
            AS s (idempotency_key, tenant_id, receivable, revenue, amount)
    ), posted AS (
        INSERT INTO ledger_transactions (idempotency_key, tenant_id) SELECT idempotency_key, tenant_id FROM sums
        RETURNING id, idempotency_key
    ), entries AS (
        INSERT INTO ledger_entries (transaction_id, account_id, amount)
        SELECT posted.id, e.account_id, e.amount FROM posted JOIN sums USING (idempotency_key)
        CROSS JOIN LATERAL (VALUES (sums.receivable, sums.amount), (sums.revenue, - sums.amount))
            AS e (account_id, amount)
    )
"""


def posting_values(sums: Sequence[UsageSum]) -> dict[str, str]:
    return {
        "posted_keys": words([one.idempotency_key for one in sums]),
        "posted_tenants": words([one.tenant_id for one in sums]),
        "receivables": numbers([one.accounts.receivable for one in sums]),
        "revenues": numbers([one.accounts.revenue for one in sums]),
        "posted_amounts": numbers([one.amount for one in sums]),
    }


_ACCOUNTS: Final = """
    SELECT r.id, v.id FROM ledger_accounts r JOIN ledger_accounts v USING (currency)
    WHERE r.kind = 'receivable' AND r.tenant_id = %(tenant_id)s AND r.grant_id IS NULL AND r.currency = %(currency)s
      AND v.kind = 'revenue' AND v.tenant_id IS NULL AND v.grant_id IS NULL
"""


def open_accounts(cursor: Cursor[Any], tenant_id: str, currency: str) -> Accounts:
    """For the first answer of a tenant in a currency; waits for the answer, and for whoever else opens them."""
    owner = {"tenant_id": tenant_id, "currency": currency}
    _open_accounts(cursor, owner)
    [(receivable, revenue)] = cursor.execute(_ACCOUNTS, owner).fetchall()
    return Accounts(receivable, revenue)


#: One after the other: two that open accounts of different tenants, and the one of revenue, would wait for each other.
_LOCK_CLASS: Final = 5
_LOCK_ACCOUNTS: Final = f"""
    SELECT pg_advisory_xact_lock({_LOCK_CLASS}, 0) WHERE 2 > (
        SELECT count(*) FROM ledger_accounts
        WHERE currency = %(currency)s AND grant_id IS NULL
          AND (kind = 'receivable' AND tenant_id = %(tenant_id)s OR kind = 'revenue' AND tenant_id IS NULL)
    )
"""  # noqa: S608 - a constant
_OPEN_ACCOUNTS: Final = """
    INSERT INTO ledger_accounts (kind, tenant_id, currency)
    SELECT 'receivable', %(tenant_id)s, %(currency)s WHERE NOT EXISTS (
        SELECT FROM ledger_accounts
        WHERE kind = 'receivable' AND tenant_id = %(tenant_id)s AND currency = %(currency)s AND grant_id IS NULL
    )
    UNION ALL
    SELECT 'revenue', NULL, %(currency)s WHERE NOT EXISTS (
        SELECT FROM ledger_accounts
        WHERE kind = 'revenue' AND tenant_id IS NULL AND currency = %(currency)s AND grant_id IS NULL
    )
    ON CONFLICT DO NOTHING
"""

_POST: Final = """
    WITH posted AS (
        INSERT INTO ledger_transactions (idempotency_key, tenant_id, kind, period)
        VALUES (%(key)s, %(tenant_id)s, %(kind)s, %(period)s) RETURNING id
    )
    INSERT INTO ledger_entries (transaction_id, account_id, amount)
    SELECT posted.id, a.id, CASE a.kind WHEN 'receivable' THEN %(amount)s::numeric ELSE - %(amount)s::numeric END
    FROM posted JOIN ledger_accounts a
        ON a.currency = %(currency)s
       AND (a.kind = 'receivable' AND a.tenant_id = %(tenant_id)s OR a.kind = 'revenue' AND a.tenant_id IS NULL)
"""


def _open_accounts(cursor: Cursor[Any], owner: Mapping[str, str]) -> None:
    cursor.execute(_LOCK_ACCOUNTS, owner)
    cursor.execute(_OPEN_ACCOUNTS, owner)


def post_receivable(
    cursor: Cursor[Any],
    *,
    tenant_id: str,
    currency: str,
    amount: Decimal,
    idempotency_key: str,
    kind: Posting = Posting.USAGE,
    period: date | None = None,
) -> None:
    """Debit what a tenant owes and credit revenue, in the transaction of `cursor`; below zero, the other way round.

    `period` is the first day of the month of the usage; None: this month. A key that was used before is a
    UniqueViolation: the caller makes sure that nothing is posted twice. Waits for no answer, so that it can be one of
    many statements of a pipeline.
    """
    owner = {"tenant_id": tenant_id, "currency": currency}
    _open_accounts(cursor, owner)
    cursor.execute(_POST, {**owner, "key": idempotency_key, "amount": amount, "kind": kind.value, "period": period})


_OPEN_ACCOUNT: Final = text("""
    INSERT INTO ledger_accounts (kind, tenant_id, currency, grant_id) VALUES (:kind, :tenant_id, :currency, :grant_id)
    ON CONFLICT DO NOTHING
""")
_ADD_ENTRY: Final = text("""
    INSERT INTO ledger_entries (transaction_id, account_id, amount)
    SELECT :transaction_id, id, :amount FROM ledger_accounts
    WHERE kind = :kind AND tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text) AND currency = :currency
      AND grant_id IS NOT DISTINCT FROM CAST(:grant_id AS text)
""")


def post_entries(
    session: Session,
    *,
    tenant_id: str,
    currency: str,
    kind: Posting,
    idempotency_key: str,
    entries: Sequence[tuple[Account, str | None, str | None, Decimal]],
    period: date | None = None,
) -> None:
    """Post a transaction about a tenant. Entries are kind, tenant and grant of an account, and an amount.

    The database refuses, at the commit, one that does not sum to zero, and at once a key that was used before.
    """
    posted = LedgerTransaction(idempotency_key=idempotency_key, tenant_id=tenant_id, kind=kind.value, period=period)
    session.add(posted)
    session.flush()
    for account, owner, grant_id, amount in entries:
        where = {"kind": account.value, "tenant_id": owner, "currency": currency, "grant_id": grant_id}
        session.execute(_OPEN_ACCOUNT, where)
        session.execute(_ADD_ENTRY, {**where, "transaction_id": posted.id, "amount": amount})
