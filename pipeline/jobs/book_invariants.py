"""What must be true of what was metered, priced, held, posted and invoiced."""

from __future__ import annotations

from typing import Final

from pipeline.billing.rollups import DRIFT
from pipeline.jobs.invariants import Invariant

OF_BOOKS: Final = (
    Invariant(
        "every answer has its usage once, and of its own prompt",
        """
        SELECT 'request ' || a.request_id, format('%s meters; %s prompt tokens metered of %s',
               count(u.meter), coalesce(sum(u.quantity) FILTER (WHERE u.meter <> 'output'), 0), r.num_prompt_tokens)
        FROM results a JOIN requests r ON r.id = a.request_id LEFT JOIN metered_usage u ON u.request_id = a.request_id
        GROUP BY a.request_id, r.num_prompt_tokens
        HAVING count(*) FILTER (WHERE u.meter = 'output') <> 1
            OR count(*) FILTER (WHERE u.meter = 'input_uncached') <> 1
            OR sum(u.quantity) FILTER (WHERE u.meter <> 'output') <> r.num_prompt_tokens
        """,
    ),
    # PostgreSQL reads no JSON with a NUL in a text, which an answer may have.
    Invariant(
        "what is metered of an answer is what the answer says",
        r"""
        SELECT 'request ' || u.request_id, format('%s output tokens metered, %s in the answer', u.quantity, said)
        FROM metered_usage u JOIN results a ON a.request_id = u.request_id, LATERAL (
            SELECT (replace(a.body, '\u0000', '\u0001')::json -> 'usage' ->> 'completion_tokens')::bigint AS said
        ) usage
        WHERE u.meter = 'output' AND u.quantity IS DISTINCT FROM said
        """,
    ),
    Invariant(
        "what stands in the row of an answer is whole",
        """
        SELECT 'request ' || a.request_id, 'part of its usage or of its price is missing, or of another tenant'
        FROM results a LEFT JOIN batches b ON b.id = a.batch_id
        WHERE a.tenant_id <> b.tenant_id OR a.num_cached_tokens = 0 AND a.cached_amount <> 0
           OR num_nulls(a.tenant_id, a.num_uncached_tokens, a.num_cached_tokens, a.num_output_tokens, a.engine_ms)
              NOT IN (0, 5)
           OR num_nulls(a.rate_card_id, a.ledger_transaction_id, a.uncached_amount, a.cached_amount, a.output_amount)
              NOT IN (0, 5)
           OR a.tenant_id IS NULL AND a.rate_card_id IS NOT NULL
        """,
    ),
    Invariant(
        "all usage has its price, of its own quantity and each revision once",
        """
        SELECT 'request ' || request_id, meter || ' has no price' FROM rated_usage WHERE revision IS NULL
        UNION ALL
        SELECT 'request ' || request_id, format('%s of %s is rated as %s', meter, quantity, rated_quantity)
        FROM usage_prices WHERE rated_quantity <> quantity
        UNION ALL
        SELECT 'request ' || request_id, format('%s has %s prices of revision %s', meter, count(*), revision)
        FROM usage_prices GROUP BY request_id, meter, revision HAVING count(*) > 1
        """,
    ),
    # Of tiers and packages, `ryzanstein bill audit` rates each line again.
    Invariant(
        "every amount is its quantity at the price of its card",
        """
        SELECT 'request ' || l.request_id,
               format('%s: %s of %s at %s', l.meter, l.amount, l.rated_quantity, l.unit_price)
        FROM usage_prices l LEFT JOIN rate_cards c ON c.id = l.rate_card_id
        LEFT JOIN rates r ON r.rate_card_id = c.id AND r.model = l.model AND r.meter = l.meter
        WHERE r.pricing IS NULL OR l.currency <> c.currency OR l.unit_price IS DISTINCT FROM r.unit_price
           OR r.pricing = 'flat' AND r.minimum = 0 AND l.amount <> l.rated_quantity * l.unit_price / 1000000
              * (1 - c.batch_discount) * CASE l.service_class WHEN 'priority' THEN c.priority_multiplier
                                                              WHEN 'flex' THEN c.flex_multiplier ELSE 1 END
        """,
    ),
    Invariant(
        "what was used before a rated line is what its rate had rated by then",
        """
        SELECT 'request ' || request_id, format('%s: %s before it, and %s were rated', meter, quantity_before, before)
        FROM (
            SELECT l.request_id, l.meter, l.quantity_before, coalesce(sum(l.rated_quantity) OVER (
                PARTITION BY l.tenant_id, date_trunc('month', l.occurred_at, 'UTC'), l.rate_card_id, l.model, l.meter,
                             l.service_class
                ORDER BY l.quantity_before, l.rated_quantity ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0) AS before
            FROM usage_prices l
            JOIN rates r ON r.rate_card_id = l.rate_card_id AND r.model = l.model AND r.meter = l.meter
            WHERE (r.pricing <> 'flat' OR r.minimum > 0) AND NOT EXISTS (
                SELECT FROM dropped_months d WHERE d.dropped_at >= l.occurred_at
            )
        ) AS counted WHERE quantity_before <> before
        """,
    ),
    Invariant(
        "a published rate card is what was published",
        """
        SELECT format('version %s of plan %s', version, plan), 'its content has another hash'
        FROM rate_cards
        WHERE published_at IS NOT NULL AND sha256 IS DISTINCT FROM sha256(convert_to(rate_card_content(id), 'UTF8'))
        """,
    ),
    Invariant(
        "what an attempt threw away has its causes",
        """
        SELECT format('attempt %s at slice %s', a.lease_epoch, a.slice_id),
               format('counts %s wasted tokens; the causes have %s', a.num_wasted_tokens, sum(w.num_tokens))
        FROM attempts a JOIN waste w ON w.slice_id = a.slice_id AND w.lease_epoch = a.lease_epoch
        WHERE w.cause <> 'recomputed'
        GROUP BY a.slice_id, a.lease_epoch, a.num_wasted_tokens HAVING sum(w.num_tokens) <> a.num_wasted_tokens
        """,
    ),
    Invariant(
        "every ledger transaction sums to zero",
        """
        SELECT 'ledger transaction ' || transaction_id, 'sums to ' || sum(amount)
        FROM ledger_entries GROUP BY transaction_id HAVING sum(amount) <> 0
        """,
    ),
    Invariant(
        "every ledger transaction is the sum of the prices that name it",
        """
        SELECT 'ledger transaction ' || t.id,
               format('receivable %s, rated %s, credited %s', e.amount, l.amount, n.amount)
        FROM ledger_transactions t
        LEFT JOIN LATERAL (
            SELECT coalesce(sum(e.amount), 0) AS amount
            FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id
            WHERE e.transaction_id = t.id AND a.kind = 'receivable'
        ) e ON true
        LEFT JOIN (
            SELECT ledger_transaction_id, sum(amount) AS amount FROM (
                SELECT ledger_transaction_id, amount - coalesce(lag(amount) OVER (
                    PARTITION BY request_id, meter ORDER BY revision
                ), 0) AS amount
                FROM usage_prices
                UNION ALL SELECT ledger_transaction_id, amount FROM archived_ledger_lines
            ) lines GROUP BY 1
        ) l ON l.ledger_transaction_id = t.id
        LEFT JOIN credit_notes n ON n.ledger_transaction_id = t.id
        WHERE t.kind <> 'credit_spent' AND coalesce(l.amount, 0) - coalesce(n.amount, 0) <> e.amount
        """,
    ),
    Invariant(
        "a window is credited if it was missed",
        """
        SELECT 'credit note ' || n.id, format('of batch %s, which is %s', b.id, b.status)
        FROM credit_notes n JOIN batches b ON b.id = n.batch_id
        WHERE b.status <> 'expired' AND (b.status <> 'completed' OR b.completed_at <= b.expires_at)
        """,
    ),
    Invariant(
        "the tokens of a batch are the sum of its usage",
        """
        SELECT 'batch ' || b.id, format('counts %s prompt, %s cached and %s output tokens; metered are %s, %s and %s',
               b.num_prompt_tokens, b.num_cached_tokens, b.num_completion_tokens,
               coalesce(c.prompt, 0), coalesce(c.cached, 0), coalesce(c.completion, 0))
        FROM batches b LEFT JOIN (
            SELECT batch_id, sum(quantity) FILTER (WHERE meter <> 'output') AS prompt,
                   sum(quantity) FILTER (WHERE meter = 'input_cached') AS cached,
                   sum(quantity) FILTER (WHERE meter = 'output') AS completion
            FROM metered_usage GROUP BY batch_id
        ) c ON c.batch_id = b.id
        WHERE NOT EXISTS (SELECT FROM dropped_batches d WHERE d.batch_id = b.id)
          AND (b.num_prompt_tokens, b.num_cached_tokens, b.num_completion_tokens)
           <> (coalesce(c.prompt, 0), coalesce(c.cached, 0), coalesce(c.completion, 0))
        """,
    ),
    Invariant(
        "roll-ups are the sum of the usage",
        f"""
        SELECT format('roll-up of %s of key %s', meter, api_key_id),
               format('%s of %s, %s: it lacks %s events of %s and %s %s', period, starts_at, model, num_events,
                      quantity, amount, currency)
        FROM ({DRIFT}) AS drift
        """,  # noqa: S608 - a constant
    ),
    Invariant(
        "nothing is held for a slice that is not claimed",
        """
        SELECT 'hold for slice ' || h.slice_id, 'the slice is ' || s.status
        FROM holds h JOIN slices s ON s.id = h.slice_id WHERE s.status <> 'claimed'
        """,
    ),
    Invariant(
        "what is held of a budget is the sum of its holds",
        """
        SELECT format('budget %s from %s', u.budget_id, u.period_start),
               format('%s is held; the holds are %s', u.held, coalesce(h.amount, 0))
        FROM budget_uses u LEFT JOIN LATERAL (
            SELECT sum(amount) AS amount FROM holds h
            WHERE h.budget_id = u.budget_id AND h.period_start = u.period_start
        ) h ON true
        WHERE u.held <> coalesce(h.amount, 0)
        """,
    ),
    Invariant(
        "the budget of a batch is spent by what it cost, and not passed",
        """
        SELECT 'batch ' || g.batch_id, format('spent %s of %s; its lines are %s', u.spent, g.amount, l.amount)
        FROM budgets g JOIN budget_uses u ON u.budget_id = g.id CROSS JOIN LATERAL (
            SELECT coalesce(sum(p.amount), 0) AS amount FROM usage_prices p
            WHERE p.batch_id = g.batch_id AND p.currency = g.currency AND p.revision = 1
        ) l
        WHERE g.batch_id IS NOT NULL AND NOT EXISTS (SELECT FROM dropped_batches d WHERE d.batch_id = g.batch_id)
          AND (u.spent <> l.amount OR u.spent + u.held > g.amount)
        """,
    ),
    Invariant(
        "an issued invoice is the sum of its lines, and a line of what it is made of",
        """
        SELECT 'invoice ' || i.number, format('total %s of %s; its lines come to %s of %s, and items to %s of %s',
               i.total, i.exact, l.amount, l.exact, coalesce(t.exact, 0), l.used)
        FROM invoices i
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(amount), 0) AS amount, coalesce(sum(exact), 0) AS exact,
                   coalesce(sum(exact) FILTER (WHERE meter IS NOT NULL), 0) AS used
            FROM invoice_lines WHERE invoice_id = i.id
        ) l
        LEFT JOIN LATERAL (SELECT sum(exact) AS exact FROM invoice_items WHERE invoice_id = i.id) t ON true
        WHERE i.number IS NOT NULL
          AND (i.total, i.exact, l.used) IS DISTINCT FROM (l.amount, l.exact, coalesce(t.exact, 0))
        """,
    ),
    Invariant(
        "numbers of invoices leave no gap in a year",
        """
        SELECT 'year ' || n.year, format('%s numbers were given; %s invoices have one, the last %s',
               n.last, i.issued, i.last)
        FROM invoice_numbers n CROSS JOIN LATERAL (
            SELECT count(*) AS issued, max(substring(number FROM '[0-9]+$')::bigint) AS last FROM invoices
            WHERE issued_at >= make_timestamptz(n.year, 1, 1, 0, 0, 0, 'UTC')
              AND issued_at < make_timestamptz(n.year + 1, 1, 1, 0, 0, 0, 'UTC')
        ) i
        WHERE (i.issued, i.last) IS DISTINCT FROM (n.last, n.last)
        """,
    ),
    Invariant(
        "the ledger has each invoice that counts as it is to be paid, and none that was taken back",
        """
        SELECT 'invoice ' || i.number, format('%s, total %s; the ledger has %s', i.status, i.total, e.amount)
        FROM invoices i CROSS JOIN LATERAL (
            SELECT coalesce(sum(e.amount), 0) AS amount
            FROM ledger_transactions t JOIN ledger_entries e ON e.transaction_id = t.id
            JOIN ledger_accounts a ON a.id = e.account_id AND a.kind = 'invoiced'
            WHERE t.idempotency_key IN ('invoice:' || i.id, 'invoice void:' || i.id)
        ) e
        WHERE i.number IS NOT NULL AND e.amount <> CASE i.status WHEN 'final' THEN i.total ELSE 0 END
        """,
    ),
)
