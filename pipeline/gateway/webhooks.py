"""`/v1/webhook_endpoints`: routes and objects are those of OpenAI; what was sent to an endpoint is an extension."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import structlog
from fastapi import APIRouter, Query

from pipeline.errors import ConfigurationError
from pipeline.gateway.auth import WebhooksReader, WebhooksWriter
from pipeline.gateway.errors import ApiError, conflict, invalid, unavailable
from pipeline.gateway.idempotency import IdempotencyKey, keyed_call
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.jobs.idempotency import answer_once
from pipeline.paging import read_page
from pipeline.schemas.lists import ListPage
from pipeline.schemas.webhooks import (
    WebhookCreate,
    WebhookDeliveryList,
    WebhookDeliveryObject,
    WebhookEndpointDeleted,
    WebhookEndpointMade,
    WebhookEndpointObject,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookRotation,
    WebhookTest,
    WebhookTestResult,
    WebhookUpdate,
)
from pipeline.settings import get_settings
from pipeline.signing import SigningKeyError, signing_key
from pipeline.tables import DeliveryStatus, WebhookEndpoint
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import check_still_valid
from pipeline.webhooks import endpoints
from pipeline.webhooks.addresses import ForbiddenUrlError
from pipeline.webhooks.events import EventType, payload_of
from pipeline.webhooks.sending import Message, send
from pipeline.webhooks.signatures import secret_of, signed_headers

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1", tags=["webhooks"])

#: A sample is waited for so long; it leaves room within the deadline of every answer.
_TEST_SECONDS = 7.0
#: Samples that one process sends at once. Each has a thread of those that all calls share.
MAX_TESTS = 4
_tests = threading.BoundedSemaphore(MAX_TESTS)


@router.get("/webhook_event_types")
def list_webhook_event_types(caller: WebhooksReader) -> WebhookEventTypeList:
    return WebhookEventTypeList(data=list(EventType))


@router.post("/webhook_endpoints")
def create_webhook_endpoint(
    caller: WebhooksWriter, body: WebhookCreate, idempotency_key: IdempotencyKey = None
) -> WebhookEndpointWithSecret:
    """A new endpoint, with the secret that its messages are signed by: it is shown this once."""
    call = keyed_call(caller, "create_webhook_endpoint", idempotency_key, body.model_dump(mode="json"))

    def create() -> WebhookEndpointMade:
        made = endpoints.create_endpoint(session, caller, name=body.name, url=body.url, event_types=body.event_types)
        check_still_valid(session, caller)
        return _made(made)

    with _explained(), transaction() as session:
        return _with_secret(answer_once(session, call, create, WebhookEndpointMade))


@router.get("/webhook_endpoints")
def list_webhook_endpoints(
    caller: WebhooksReader, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ListPage[WebhookEndpointObject]:
    """The caller's endpoints, the newest first."""
    with transaction() as session:
        page = read_page(
            session, WebhookEndpoint, caller.tenant_id, project_id=caller.project_id, after=after, limit=limit
        )
        return ListPage(
            data=[WebhookEndpointObject.of(row) for row in page.rows],
            first_id=page.first_id,
            last_id=page.last_id,
            has_more=page.has_more,
        )


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def retrieve_webhook_endpoint(caller: WebhooksReader, webhook_endpoint_id: str) -> WebhookEndpointObject:
    with _explained(webhook_endpoint_id), transaction() as session:
        return WebhookEndpointObject.of(endpoints.find_endpoint(session, caller, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_webhook_endpoint(
    caller: WebhooksWriter,
    webhook_endpoint_id: str,
    body: WebhookUpdate | None = None,
    idempotency_key: IdempotencyKey = None,
) -> WebhookEndpointObject:
    """Change what is given. Extension: `disabled`."""
    wanted = body or WebhookUpdate()
    content = {"webhook_endpoint_id": webhook_endpoint_id, **wanted.model_dump(mode="json")}
    call = keyed_call(caller, "update_webhook_endpoint", idempotency_key, content)

    def change() -> WebhookEndpointObject:
        changed = endpoints.update_endpoint(
            session,
            caller,
            webhook_endpoint_id,
            name=wanted.name,
            url=wanted.url,
            event_types=wanted.event_types,
            is_disabled=wanted.disabled,
        )
        check_still_valid(session, caller)
        return WebhookEndpointObject.of(changed)

    with _explained(webhook_endpoint_id), transaction() as session:
        return answer_once(session, call, change, WebhookEndpointObject)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
def rotate_webhook_secret(
    caller: WebhooksWriter,
    webhook_endpoint_id: str,
    body: WebhookRotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> WebhookEndpointWithSecret:
    """A new secret, shown this once; the one before holds for 24 hours more if that is asked for."""
    keeps_old = body is not None and body.keep_old_secret_active_for_24_hours
    content = {"webhook_endpoint_id": webhook_endpoint_id, "keeps_old": keeps_old}
    call = keyed_call(caller, "rotate_webhook_secret", idempotency_key, content)

    def rotate() -> WebhookEndpointMade:
        rotated = endpoints.rotate_secret(session, caller, webhook_endpoint_id, keeps_old=keeps_old)
        check_still_valid(session, caller)
        return _made(rotated)

    with _explained(webhook_endpoint_id), transaction() as session:
        return _with_secret(answer_once(session, call, rotate, WebhookEndpointMade))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
def send_webhook_test(
    caller: WebhooksWriter, webhook_endpoint_id: str, body: WebhookTest, idempotency_key: IdempotencyKey = None
) -> WebhookTestResult:
    """Send a sample event now, and say how the receiver answered; 409 where it did not.

    With an `Idempotency-Key`, the sample has the same `webhook-id` whenever it is sent.
    """
    with _explained(webhook_endpoint_id), transaction() as session:
        endpoint = endpoints.find_endpoint(session, caller, webhook_endpoint_id)
    event_id = new_id("evt")
    if idempotency_key is not None:
        name = f"{endpoint.id}:{idempotency_key}"
        event_id = "evt_" + hashlib.sha256(name.encode()).hexdigest()[:32]
    now = int(time.time())
    sample = payload_of(event_id, body.event_type, "batch_sample", now)
    with _explained(webhook_endpoint_id):
        secret = secret_of(signing_key(), endpoint.id, endpoint.secret_generation)
    message = Message(endpoint.url, signed_headers(event_id, now, sample, [secret]), sample)
    if not _tests.acquire(blocking=False):
        raise ApiError(
            429,
            "As many samples as may be are being sent at the moment. Try again in a few seconds.",
            kind="requests",
            code="too_many_webhook_tests",
            headers={"Retry-After": str(round(_TEST_SECONDS))},
        )
    try:
        answer = send(message, get_settings(), _TEST_SECONDS)
    finally:
        _tests.release()
    if answer.status is None:
        raise conflict(str(answer.error), param="url", code="webhook_test_failed")
    return WebhookTestResult(webhook_endpoint_id=endpoint.id, event_type=body.event_type, status_code=answer.status)


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
def list_webhook_deliveries(
    caller: WebhooksReader,
    webhook_endpoint_id: str,
    status: DeliveryStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> WebhookDeliveryList:
    """Extension: what was sent to an endpoint of late, the newest first, with every attempt."""
    with _explained(webhook_endpoint_id), transaction() as session:
        found = endpoints.list_deliveries(session, caller, webhook_endpoint_id, status=status, limit=limit)
        return WebhookDeliveryList(data=[WebhookDeliveryObject.of(*one) for one in found])


@router.post("/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/resend")
def resend_webhook_delivery(
    caller: WebhooksWriter, webhook_endpoint_id: str, delivery_id: str, idempotency_key: IdempotencyKey = None
) -> WebhookDeliveryObject:
    """Extension: send an event again, with the same `webhook-id`, whatever came of it before."""
    content = {"webhook_endpoint_id": webhook_endpoint_id, "delivery_id": delivery_id}
    call = keyed_call(caller, "resend_webhook_delivery", idempotency_key, content)

    def resend() -> WebhookDeliveryObject:
        again = endpoints.resend(session, caller, webhook_endpoint_id, delivery_id)
        check_still_valid(session, caller)
        return WebhookDeliveryObject.of(*again)

    with _explained(webhook_endpoint_id, delivery_id), transaction() as session:
        delivery = answer_once(session, call, resend, WebhookDeliveryObject)
    outbox.publish_soon()
    return delivery


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_webhook_endpoint(caller: WebhooksWriter, webhook_endpoint_id: str) -> WebhookEndpointDeleted:
    """Send nothing more to an endpoint, and forget what was."""
    with _explained(webhook_endpoint_id), transaction() as session:
        endpoints.delete_endpoint(session, caller, webhook_endpoint_id)
        check_still_valid(session, caller)
    return WebhookEndpointDeleted(id=webhook_endpoint_id)


def _made(endpoint: WebhookEndpoint) -> WebhookEndpointMade:
    return WebhookEndpointMade(endpoint=WebhookEndpointObject.of(endpoint), generation=endpoint.secret_generation)


def _with_secret(made: WebhookEndpointMade) -> WebhookEndpointWithSecret:
    secret = secret_of(signing_key(), made.endpoint.id, made.generation)
    return WebhookEndpointWithSecret(**made.endpoint.model_dump(), signing_secret=secret)


@contextmanager
def _explained(endpoint_id: str = "", delivery_id: str = "") -> Iterator[None]:
    try:
        yield
    except endpoints.EndpointNotFoundError:
        raise ApiError(
            404,
            f"No webhook endpoint found with id '{endpoint_id[:128]}'.",
            param="webhook_endpoint_id",
            code="webhook_endpoint_not_found",
        ) from None
    except endpoints.DeliveryNotFoundError:
        raise ApiError(
            404,
            f"No delivery found with id '{delivery_id[:128]}'.",
            param="delivery_id",
            code="webhook_delivery_not_found",
        ) from None
    except endpoints.EndpointDisabledError as error:
        raise conflict(str(error), param="webhook_endpoint_id", code="webhook_endpoint_disabled") from None
    except endpoints.TooManyEndpointsError as error:
        raise conflict(str(error), param="url", code="webhook_endpoint_limit") from None
    except ForbiddenUrlError as error:
        raise invalid("url", f"Invalid 'url': {error}") from None
    except (SigningKeyError, ConfigurationError) as error:
        log.error("webhooks can't be signed", reason=str(error))
        raise unavailable("Webhooks can't be signed at the moment. Try again later, or tell the operator.") from None
