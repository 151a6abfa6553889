from __future__ import annotations

from datetime import timedelta

from issued_invoices import AFTER_OCTOBER, MID_OCTOBER, OCTOBER, make_card
from recorded_usage import make_batch, make_key, use
from seeds import sql
from sqlalchemy import Engine

from pipeline.billing.drafting import draft_invoices
from pipeline.billing.invoices import create_invoices
from pipeline.tables.session import transaction

INVOICES = "SELECT currency, status FROM invoices ORDER BY currency"


def test_a_draft_that_was_made_early_keeps_no_other_currency_from_its_invoice(database: Engine) -> None:
    with transaction() as session:
        key = make_key(session, "acme")
        batch = make_batch(session, key)
        use(session, batch, "a", (10, 0, 1), at=MID_OCTOBER, card=make_card(session, "a", "USD"))
        create_invoices(session, key.tenant_id, OCTOBER, MID_OCTOBER)
        use(session, batch, "b", (10, 0, 1), at=MID_OCTOBER + timedelta(days=1), card=make_card(session, "b", "JPY"))
    assert sql(database, INVOICES) == [("USD", "draft")]

    assert draft_invoices(database, AFTER_OCTOBER) == 2
    assert sql(database, INVOICES) == [("JPY", "collecting"), ("USD", "collecting")]
    assert draft_invoices(database, AFTER_OCTOBER) == 0


def test_drafts_begin_to_collect_whenever_control_comes_back(database: Engine) -> None:
    with transaction() as session:
        key = make_key(session, "acme")
        use(session, make_batch(session, key), "a", (10, 0, 1), at=MID_OCTOBER, card=make_card(session, "a"))
        create_invoices(session, key.tenant_id, OCTOBER, MID_OCTOBER)

    assert draft_invoices(database, OCTOBER.end + timedelta(days=20)) == 0
    assert sql(database, INVOICES) == [("USD", "collecting")]
