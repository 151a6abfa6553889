"""Who calls: `Authorization: Bearer rz_…`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pipeline.gateway.errors import too_many_failures, unauthorized
from pipeline.gateway.failed_keys import FailedKeys
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import InvalidKeyError, Principal, authenticate

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
    return principal


#: The caller; every route but those of health takes one.
Caller = Annotated[Principal, Depends(_principal)]
