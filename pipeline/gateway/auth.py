"""Who calls: `Authorization: Bearer rz_…`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pipeline.gateway.errors import ApiError, too_many_failures, unauthorized
from pipeline.gateway.failed_keys import FailedKeys
from pipeline.gateway.rate_limits import count_request
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import InvalidKeyError, Principal, authenticate
from pipeline.tenancy.scopes import Scope

_bearer = HTTPBearer(auto_error=False, description="An API key, as `ryzanstein keys create` shows it.")


def _principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    """In a transaction of its own, so that a long call holds no lock on its key."""
    if credentials is None:
        raise unauthorized(
            "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY.", None
        )
    try:
        with transaction() as session:
            principal = authenticate(session, credentials.credentials)
    except InvalidKeyError:
        failed: FailedKeys = request.app.state.failed_keys
        if seconds := failed.add(request.client.host if request.client is not None else ""):
            raise too_many_failures(seconds) from None
        raise
    request.state.caller = principal  # for the log
    count_request(request, principal)
    return principal


#: The caller, whatever its key may do; every route but those of health takes a caller.
Caller = Annotated[Principal, Depends(_principal)]


def check_scope(caller: Principal, scope: Scope) -> None:
    """Raises ApiError (403)."""
    if not caller.may(scope):
        raise ApiError(
            403,
            f"This key may not do this: it lacks the scope '{scope}'. Use another key, or ask the operator for "
            "one that has it.",
            code="missing_scope",
        )


def _with(scope: Scope) -> Callable[[Principal], Principal]:
    def check(caller: Caller) -> Principal:
        check_scope(caller, scope)
        return caller

    return check


#: The caller, who has the scope of this name; anybody else is answered by 403.
FilesReader = Annotated[Principal, Depends(_with(Scope.FILES_READ))]
FilesWriter = Annotated[Principal, Depends(_with(Scope.FILES_WRITE))]
BatchesReader = Annotated[Principal, Depends(_with(Scope.BATCHES_READ))]
BatchesWriter = Annotated[Principal, Depends(_with(Scope.BATCHES_WRITE))]
WebhooksReader = Annotated[Principal, Depends(_with(Scope.WEBHOOKS_READ))]
WebhooksWriter = Annotated[Principal, Depends(_with(Scope.WEBHOOKS_WRITE))]
UsageReader = Annotated[Principal, Depends(_with(Scope.USAGE_READ))]


def check_whole_tenant(caller: Principal) -> None:
    """Raises ApiError (403)."""
    if caller.project_id is not None:
        raise ApiError(
            403,
            "This key is of one project, and invoices are of the whole organisation. Use a key of the organisation.",
            code="project_key",
        )


def _whole_tenant(caller: Annotated[Principal, Depends(_with(Scope.INVOICES_READ))]) -> Principal:
    check_whole_tenant(caller)
    return caller


#: The same, with a key that is of no project: an invoice is of all of them.
InvoicesReader = Annotated[Principal, Depends(_whole_tenant)]
