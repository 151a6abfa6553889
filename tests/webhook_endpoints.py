"""Webhook endpoints of seeded tenants."""

from __future__ import annotations

from seeds import SeededTenant

from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal
from pipeline.webhooks.endpoints import create_endpoint
from pipeline.webhooks.events import EventType


def listen(tenant: SeededTenant, url: str, *kinds: EventType, project_id: str | None = None) -> str:
    """An endpoint of this tenant; returns its id."""
    caller = Principal(tenant_id=tenant.id, api_key_id=tenant.api_key_id, project_id=project_id)
    with transaction() as session:
        return create_endpoint(session, caller, name="hooks", url=url, event_types=kinds or list(EventType)).id
