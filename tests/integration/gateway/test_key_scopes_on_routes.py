"""Which scope each route asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from running_gateways import Tenant, error_of

from pipeline.gateway import create_app
from pipeline.tenancy.scopes import Scope

#: None: any key will do.
SCOPES: Final[dict[tuple[str, str], Scope | None]] = {
    ("POST", "/v1/files"): Scope.FILES_WRITE,
    ("GET", "/v1/files"): Scope.FILES_READ,
    ("GET", "/v1/files/{file_id}"): Scope.FILES_READ,
    ("GET", "/v1/files/{file_id}/content"): Scope.FILES_READ,
    ("DELETE", "/v1/files/{file_id}"): Scope.FILES_WRITE,
    ("POST", "/v1/batches"): Scope.BATCHES_WRITE,
    ("GET", "/v1/batches"): Scope.BATCHES_READ,
    ("GET", "/v1/batches/{batch_id}"): Scope.BATCHES_READ,
    ("POST", "/v1/batches/{batch_id}/cancel"): Scope.BATCHES_WRITE,
    ("POST", "/v1/batches/{batch_id}/pause"): Scope.BATCHES_WRITE,
    ("POST", "/v1/batches/{batch_id}/resume"): Scope.BATCHES_WRITE,
    ("POST", "/v1/batches/{batch_id}/retry"): Scope.BATCHES_WRITE,
    ("GET", "/v1/batches/{batch_id}/events"): Scope.BATCHES_READ,
    ("GET", "/v1/batches/{batch_id}/explain"): Scope.BATCHES_READ,
    ("POST", "/v1/batches/quote"): Scope.BATCHES_WRITE,
    ("GET", "/v1/batches/quote/{quote_id}"): Scope.BATCHES_READ,
    ("GET", "/v1/organization/usage/completions"): Scope.USAGE_READ,
    ("GET", "/v1/organization/budgets"): Scope.USAGE_READ,
    ("GET", "/v1/organization/costs"): Scope.USAGE_READ,
    ("GET", "/v1/organization/invoices"): Scope.INVOICES_READ,
    ("GET", "/v1/organization/invoices/{invoice_id}"): Scope.INVOICES_READ,
    ("GET", "/v1/organization/invoices/{invoice_id}/{form}"): Scope.INVOICES_READ,
    ("GET", "/v1/webhook_event_types"): Scope.WEBHOOKS_READ,
    ("POST", "/v1/webhook_endpoints"): Scope.WEBHOOKS_WRITE,
    ("GET", "/v1/webhook_endpoints"): Scope.WEBHOOKS_READ,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}"): Scope.WEBHOOKS_READ,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): Scope.WEBHOOKS_WRITE,
    ("DELETE", "/v1/webhook_endpoints/{webhook_endpoint_id}"): Scope.WEBHOOKS_WRITE,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"): Scope.WEBHOOKS_WRITE,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"): Scope.WEBHOOKS_WRITE,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries"): Scope.WEBHOOKS_READ,
    (
        "POST",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/resend",
    ): Scope.WEBHOOKS_WRITE,
    ("GET", "/v1/receipts/key"): None,
    ("GET", "/v1/models"): None,
    ("GET", "/v1/models/{model}"): None,
}
OPEN: Final = {("GET", "/healthz"), ("GET", "/readyz")}


def test_every_route_asks_for_its_scope_and_no_other(join: Callable[..., Tenant], subtests: pytest.Subtests) -> None:
    described = {
        (method.upper(), path): item
        for path, found in create_app().openapi()["paths"].items()
        for method, item in found.items()
    }
    assert set(described) - OPEN == set(SCOPES), "say here which scope a new route asks for"
    callers = {scope: join("acme", scopes=[scope]) for scope in Scope}
    for (method, path), wanted in SCOPES.items():
        for scope, caller in callers.items():
            with subtests.test(method=method, path=path, scope=scope.value):
                response = caller.http.request(method, path)
                is_refused = response.status_code == 403
                assert is_refused == (wanted not in (None, scope))
                if is_refused:
                    error = error_of(response)
                    assert error["code"] == "missing_scope"
                    assert str(wanted) in str(error["message"])


def test_every_route_that_takes_a_post_takes_an_idempotency_key() -> None:
    for path, found in create_app().openapi()["paths"].items():
        if "post" in found:
            assert "idempotency-key" in {one["name"] for one in found["post"].get("parameters", [])}, path
