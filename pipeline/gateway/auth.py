"""Who calls: `Authorization: Bearer rz_…`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pipeline.gateway.errors import unauthorized
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, authenticate

_bearer = HTTPBearer(auto_error=False, description="An API key, as `ryzanstein keys create` shows it.")


def _principal(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Principal:
    """In a transaction of its own, so that a long call holds no lock on its key."""
    if credentials is None:
        raise unauthorized(
            "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY.", None
        )
    with transaction() as session:
        return authenticate(session, credentials.credentials)


#: The caller; every route but those of health takes one.
Caller = Annotated[Principal, Depends(_principal)]
