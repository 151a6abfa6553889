"""The double-entry ledger: transactions whose entries sum to zero."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from psycopg import Cursor

#: Accounts are of two kinds: `receivable`, what a tenant owes (a debit is positive), and `revenue`, what the operator
#: earned (a credit is negative).
_OPEN_ACCOUNTS: Final = """
    INSERT INTO ledger_accounts (kind, tenant_id, currency)
    SELECT kind, tenant_id, %(currency)s
    FROM (VALUES ('receivable', %(tenant_id)s), ('revenue', NULL)) AS wanted (kind, tenant_id)
    WHERE NOT EXISTS (
        SELECT FROM ledger_accounts a
        WHERE a.kind = wanted.kind AND a.tenant_id IS NOT DISTINCT FROM wanted.tenant_id AND a.currency = %(currency)s
    )
    ON CONFLICT DO NOTHING
"""

_POST: Final = """
    WITH posted AS (
        INSERT INTO ledger_transactions (idempotency_key, tenant_id) VALUES (%(key)s, %(tenant_id)s) RETURNING id
    )
    INSERT INTO ledger_entries (transaction_id, account_id, amount)
    SELECT posted.id, a.id, CASE a.kind WHEN 'receivable' THEN %(amount)s::numeric ELSE - %(amount)s::numeric END
    FROM posted JOIN ledger_accounts a
        ON a.currency = %(currency)s
       AND (a.kind = 'receivable' AND a.tenant_id = %(tenant_id)s OR a.kind = 'revenue' AND a.tenant_id IS NULL)
"""


def post_receivable(
    cursor: Cursor[Any], *, tenant_id: str, currency: str, amount: Decimal, idempotency_key: str
) -> None:
    """Debit what a tenant owes and credit revenue, in the transaction of `cursor`.

    A key that was used before is a UniqueViolation: the caller makes sure that nothing is posted twice. Waits for no
    answer, so that it can be one of many statements of a pipeline.
    """
    owner = {"tenant_id": tenant_id, "currency": currency}
    cursor.execute(_OPEN_ACCOUNTS, owner)
    cursor.execute(_POST, {**owner, "key": idempotency_key, "amount": amount})
