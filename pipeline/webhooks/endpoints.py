"""The webhooks of a tenant: made, changed, rotated, disabled and deleted, each with an entry in the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from pipeline.celery import CONTROL_QUEUE, DELIVER
from pipeline.errors import PipelineError
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.settings import get_settings
from pipeline.signing import signing_key
from pipeline.tables import DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent
from pipeline.tenancy import audit_log
from pipeline.tenancy.keys import Principal
from pipeline.webhooks.addresses import check_url
from pipeline.webhooks.delivering import disable
from pipeline.webhooks.events import PATIENCE, EventType
from pipeline.webhooks.signatures import hint_of, secret_of

#: Endpoints that a tenant may have.
MAX_ENDPOINTS: Final = 20
#: How long the secret before holds, where it is asked for.
_OLD_SECRET_LIFE: Final = timedelta(hours=24)

#: Of a tenant's advisory lock, beside the hash of its id.
_LOCK_CLASS: Final = 13


class EndpointNotFoundError(PipelineError):
    """The tenant, or the project, has no such webhook endpoint."""


class DeliveryNotFoundError(PipelineError):
    """The endpoint has no such delivery."""


class TooManyEndpointsError(PipelineError):
    """The tenant has as many endpoints as it may."""

    def __init__(self) -> None:
        super().__init__(f"You have {MAX_ENDPOINTS} webhook endpoints, and may have no more. Delete one first.")


class EndpointDisabledError(PipelineError):
    """Nothing is sent to an endpoint that is disabled. Enable it first."""


def is_visible(caller: Principal) -> ColumnElement[bool]:
    """Those of the caller's tenant, or of its project alone: one of all projects is none of a project's business."""
    is_of_tenant = WebhookEndpoint.tenant_id == caller.tenant_id
    if caller.project_id is None:
        return is_of_tenant
    return is_of_tenant & (WebhookEndpoint.project_id == caller.project_id)


def create_endpoint(
    session: Session, caller: Principal, *, name: str, url: str, event_types: Sequence[EventType]
) -> WebhookEndpoint:
    """A new endpoint for the caller's project, or for all projects where its key is of none.

    Raises ForbiddenUrlError, TooManyEndpointsError, SigningKeyError.
    """
    check_url(url, get_settings())
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(caller.tenant_id))))
    of_tenant = WebhookEndpoint.tenant_id == caller.tenant_id
    if session.execute(select(func.count()).where(of_tenant)).scalar_one() >= MAX_ENDPOINTS:
        raise TooManyEndpointsError
    endpoint = WebhookEndpoint(
        id=new_id("webhook"),
        tenant_id=caller.tenant_id,
        project_id=caller.project_id,
        name=name,
        url=url,
        event_types=[kind.value for kind in event_types],
        secret_generation=1,
    )
    endpoint.secret_hint = hint_of(secret_of(signing_key(), endpoint.id, 1))
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    _record(session, "webhook.create", endpoint, caller)
    return endpoint


def find_endpoint(session: Session, caller: Principal, endpoint_id: str, *, is_locked: bool = False) -> WebhookEndpoint:
    """Raises EndpointNotFoundError."""
    query = select(WebhookEndpoint).where(is_visible(caller), WebhookEndpoint.id == endpoint_id)
    if is_locked:
        query = query.with_for_update(key_share=True)
    endpoint = session.scalars(query).one_or_none()
    if endpoint is None:
        raise EndpointNotFoundError
    return endpoint


def update_endpoint(
    session: Session,
    caller: Principal,
    endpoint_id: str,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[EventType] | None = None,
    is_disabled: bool | None = None,
) -> WebhookEndpoint:
    """Change what is given. Raises EndpointNotFoundError, ForbiddenUrlError."""
    endpoint = find_endpoint(session, caller, endpoint_id, is_locked=True)
    before = _shown(endpoint)
    if url is not None:
        check_url(url, get_settings())
        endpoint.url = url
    if name is not None:
        endpoint.name = name
    if event_types is not None:
        endpoint.event_types = [kind.value for kind in event_types]
    if is_disabled is False and endpoint.disabled_at is not None:
        endpoint.disabled_at = endpoint.disabled_reason = endpoint.failing_since = None
    if session.is_modified(endpoint):
        endpoint.updated_at = func.clock_timestamp()
        session.flush()
        session.refresh(endpoint)
    if _shown(endpoint) != before:
        _record(session, "webhook.update", endpoint, caller)
    if is_disabled and endpoint.disabled_at is None:
        disable(session.connection(), endpoint.id, "It was disabled by its owner.", actor=caller.api_key_id)
        session.refresh(endpoint)
    return endpoint


def rotate_secret(session: Session, caller: Principal, endpoint_id: str, *, keeps_old: bool) -> WebhookEndpoint:
    """Give an endpoint a new secret; the one before holds for 24 hours more if it is kept.

    Raises EndpointNotFoundError, SigningKeyError.
    """
    endpoint = find_endpoint(session, caller, endpoint_id, is_locked=True)
    generation = endpoint.secret_generation + 1
    life = _OLD_SECRET_LIFE if keeps_old else timedelta(0)
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint.id)
        .values(
            secret_generation=generation,
            secret_hint=hint_of(secret_of(signing_key(), endpoint.id, generation)),
            old_secret_until=func.clock_timestamp() + life,
            updated_at=func.clock_timestamp(),
        )
    )
    session.refresh(endpoint)
    _record(session, "webhook.rotate", endpoint, caller, keeps_old=keeps_old)
    return endpoint


def delete_endpoint(session: Session, caller: Principal, endpoint_id: str) -> None:
    """Remove an endpoint and the log of what was sent to it. Raises EndpointNotFoundError."""
    endpoint = find_endpoint(session, caller, endpoint_id)
    session.execute(text("DELETE FROM webhook_endpoints WHERE id = :id"), {"id": endpoint.id})
    _record(session, "webhook.delete", endpoint, caller)


def list_deliveries(
    session: Session, caller: Principal, endpoint_id: str, *, status: DeliveryStatus | None, limit: int
) -> Sequence[tuple[WebhookDelivery, WebhookEvent]]:
    """What was sent to an endpoint of late, the newest first. Raises EndpointNotFoundError."""
    endpoint = find_endpoint(session, caller, endpoint_id)
    query = (
        select(WebhookDelivery, WebhookEvent)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.endpoint_id == endpoint.id)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id)
        .limit(limit)
    )
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    return [(row[0], row[1]) for row in session.execute(query)]


def resend(
    session: Session, caller: Principal, endpoint_id: str, delivery_id: str
) -> tuple[WebhookDelivery, WebhookEvent]:
    """Send an event again, whatever came of it before; it has 72 hours once more.

    Call `outbox.publish_soon` after the commit. Raises EndpointNotFoundError, DeliveryNotFoundError,
    EndpointDisabledError.
    """
    endpoint = find_endpoint(session, caller, endpoint_id)
    if endpoint.disabled_at is not None:
        raise EndpointDisabledError
    again = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint.id)
        .values(
            status=DeliveryStatus.PENDING,
            num_tries=0,
            next_attempt_at=func.now(),
            give_up_at=func.now() + PATIENCE,
            delivered_at=None,
        )
        .returning(WebhookDelivery)
    )
    delivery = session.execute(again).scalar_one_or_none()
    if delivery is None:
        raise DeliveryNotFoundError
    outbox.add(session, queue=CONTROL_QUEUE, task=DELIVER, args=[])
    session.refresh(delivery)
    return delivery, session.get_one(WebhookEvent, delivery.event_id)


def _shown(endpoint: WebhookEndpoint) -> tuple[object, ...]:
    return endpoint.name, endpoint.url, tuple(endpoint.event_types), endpoint.disabled_at


def _record(session: Session, act: str, endpoint: WebhookEndpoint, caller: Principal, **more: bool) -> None:
    """Of the URL the host alone: a path may hold what is nobody's business."""
    details = {
        "tenant": endpoint.tenant_id,
        "project": endpoint.project_id,
        "host": urlsplit(endpoint.url).hostname,
        "event_types": endpoint.event_types,
        **more,
    }
    audit_log.record(session, act=act, object=endpoint.id, details=details, actor=caller.api_key_id)
