"""Cards of before plans become versions of the default plan, and go on to rate what they rated."""

from __future__ import annotations

from alembic import command
from seeds import sql
from sqlalchemy import Engine

from pipeline.billing.cards_in_effect import find_rates
from pipeline.tables import Meter
from pipeline.tables.migrating import alembic_config, migrate
from pipeline.tables.session import transaction

CARD = (
    "INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount)"
    " VALUES ('{model}', 'USD', 0.1, 0.05, {output}, 0.5)"
)


def test_cards_become_versions_of_the_default_plan_with_rates_and_hashes(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    command.downgrade(alembic_config(url), "0005")
    for model, output in (("tiny", "0.4"), ("large", "2"), ("tiny", "0.3")):
        sql(database, CARD.format(model=model, output=output))
    migrate(url)

    assert sql(database, "SELECT id, plan, version, model FROM rate_cards ORDER BY id") == [
        (1, "default", 1, "tiny"),
        (2, "default", 2, "large"),
        (3, "default", 3, "tiny"),
    ]
    same = "sha256 = sha256(convert_to(rate_card_content(id), 'UTF8')) AND published_at = created_at"
    assert sql(database, f"SELECT count(*) FROM rate_cards WHERE {same}") == [(3,)]
    # As a process of the version before writes one.
    sql(database, CARD.format(model="tiny", output="0.2"))
    with transaction() as session:
        rates = find_rates(session, tenant_id="tenant_of_nobody", model="tiny")
        assert rates is not None
        assert (rates.version, str(rates.by_meter[Meter.OUTPUT].unit_price)) == (4, "0.200000")
        old = find_rates(session, tenant_id="tenant_of_nobody", model="tiny", rate_card_id=1)
        assert old is not None
        assert str(old.by_meter[Meter.OUTPUT].unit_price) == "0.400000"
