"""Roll-ups of usage, without the events that they add up."""

from __future__ import annotations

from running_gateways import Tenant
from seeds import sql
from sqlalchemy import Engine

from pipeline.tenancy.tenants import default_project_id


def add_usage(
    database: Engine,
    tenant: Tenant,
    *,
    model: str = "tiny",
    tokens: tuple[int, int, int],
    days_ago: int = 0,
    amount: str = "0",
    currency: str = "USD",
) -> None:
    """One answer of (uncached, cached, output) tokens of the tenant's first key; `amount` is of its output."""
    [[key_id]] = sql(
        database, "SELECT id FROM api_keys WHERE tenant_id = :id ORDER BY created_at LIMIT 1", id=tenant.id
    )
    for meter, quantity in zip(("input_uncached", "input_cached", "output"), tokens, strict=True):
        sql(
            database,
            "INSERT INTO usage_rollups (tenant_id, period, starts_at, project_id, api_key_id, model, service_class,"
            " meter, currency, shard, num_events, quantity, engine_ms, amount)"
            " SELECT :tenant, p, date_trunc(p, now() - make_interval(days => :days), 'UTC'), :project, :key, :model,"
            " 'standard', :meter, :currency, 0, 1, :quantity, 0, CAST(:amount AS numeric)"
            " FROM unnest(ARRAY['hour', 'day']) p"
            " ON CONFLICT ON CONSTRAINT pk_usage_rollups DO UPDATE"
            " SET num_events = usage_rollups.num_events + 1, quantity = usage_rollups.quantity + excluded.quantity,"
            " amount = usage_rollups.amount + excluded.amount",
            tenant=tenant.id,
            days=days_ago,
            project=default_project_id(tenant.id),
            key=key_id,
            model=model,
            meter=meter,
            currency=currency,
            quantity=quantity,
            amount=amount if meter == "output" else "0",
        )
