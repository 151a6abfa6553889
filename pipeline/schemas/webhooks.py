"""Webhook endpoints and what was sent to them, as the API takes and shows them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from pipeline.schemas.batches import unix_seconds
from pipeline.tables import DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent
from pipeline.webhooks.addresses import MAX_URL_LENGTH
from pipeline.webhooks.events import EventType


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("NUL characters can't be stored.")
    return value


def _each_once(value: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(value))


Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_storable)]
# What a URL may be is said by pipeline/webhooks/addresses.py.
Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_LENGTH), AfterValidator(_storable)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=64), AfterValidator(_each_once)]


class WebhookCreate(BaseModel):
    """What `POST /v1/webhook_endpoints` takes."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Url
    event_types: EventTypes


class WebhookUpdate(BaseModel):
    """What is to change of an endpoint."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    #: Extension: `true` sends nothing more; `false` begins again after it was disabled.
    disabled: StrictBool | None = None


class WebhookRotation(BaseModel):
    """How a secret is replaced."""

    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: StrictBool = False


class WebhookTest(BaseModel):
    """What sample is sent."""

    model_config = ConfigDict(extra="forbid")

    event_type: EventType


class WebhookEndpointObject(BaseModel):
    """An endpoint, without its secret. Moments are Unix seconds."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    created_at: int
    updated_at: int
    #: Extension: since when nothing is sent to it, and why.
    disabled_at: int | None
    disabled_reason: str | None
    #: Extension: since when no attempt has succeeded.
    failing_since: int | None

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(
            id=endpoint.id,
            name=endpoint.name,
            url=endpoint.url,
            event_types=endpoint.event_types,
            signing_secret_hint=endpoint.secret_hint,
            created_at=int(endpoint.created_at.timestamp()),
            updated_at=int(endpoint.updated_at.timestamp()),
            disabled_at=unix_seconds(endpoint.disabled_at),
            disabled_reason=endpoint.disabled_reason,
            failing_since=unix_seconds(endpoint.failing_since),
        )


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """An endpoint that was just made or given a new secret, which is shown this once."""

    signing_secret: str


class WebhookEndpointMade(BaseModel):
    """The same without the secret, and with what it is derived by: what is kept of an answer under a client's name."""

    endpoint: WebhookEndpointObject
    generation: int


class WebhookEndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookTestResult(BaseModel):
    """That the receiver has answered; how, its status says."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = True


class WebhookEventTypeList(BaseModel):
    """The types of events that there are."""

    object: Literal["list"] = "list"
    data: list[EventType]


class AttemptObject(BaseModel):
    """One attempt to send an event."""

    at: int
    #: Of HTTP; null where there was no answer.
    status: int | None
    error: str | None
    ms: int


class WebhookDeliveryObject(BaseModel):
    """Extension: one event on its way to one endpoint."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: str
    batch_id: str
    status: DeliveryStatus
    num_attempts: int
    #: The last ones, the oldest first.
    attempts: list[AttemptObject]
    #: Null where none is to be made.
    next_attempt_at: int | None
    created_at: int
    delivered_at: int | None

    @classmethod
    def of(cls, delivery: WebhookDelivery, event: WebhookEvent) -> Self:
        is_pending = delivery.status is DeliveryStatus.PENDING
        return cls(
            id=delivery.id,
            event_id=event.id,
            event_type=event.type,
            batch_id=event.batch_id,
            status=delivery.status,
            num_attempts=delivery.num_attempts,
            attempts=[AttemptObject.model_validate(attempt) for attempt in delivery.attempts],
            next_attempt_at=unix_seconds(delivery.next_attempt_at) if is_pending else None,
            created_at=int(delivery.created_at.timestamp()),
            delivered_at=unix_seconds(delivery.delivered_at),
        )


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookDeliveryObject]
