"""Who looks: the session behind the cookie, what its key may do, and whether a form is the session's own."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request

from pipeline.console.failures import SignedOutError
from pipeline.gateway.auth import check_scope
from pipeline.gateway.errors import ApiError
from pipeline.gateway.rate_limits import count_request
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer, find_viewer
from pipeline.tenancy.scopes import Scope

COOKIE: Final = "ryzanstein_console"
CSRF_FIELD: Final = "csrf_token"
CSRF_HEADER: Final = "x-csrf-token"
#: Of what a page fetches while nobody touches it.
BY_ITSELF_HEADER: Final = "x-by-itself"
#: Fields that a form of ours has at most.
_MOST_FIELDS: Final = 64


def _viewer(request: Request) -> Viewer:
    """In a transaction of its own, so that a long page holds no lock on its session."""
    token = request.cookies.get(COOKIE)
    if token is None:
        raise SignedOutError(had_session=False)
    with transaction() as session:
        viewer = find_viewer(session, token, is_in_use=BY_ITSELF_HEADER not in request.headers)
    if viewer is None:
        raise SignedOutError(had_session=True)
    request.state.caller = viewer.principal  # for the log
    request.state.viewer = viewer
    count_request(request, viewer.principal)
    return viewer


#: Who is signed in, whatever their key may do; anybody else is sent to the sign-in page.
SignedIn = Annotated[Viewer, Depends(_viewer)]


def viewer_with(scope: Scope) -> Callable[[Viewer], Viewer]:
    """For `Depends`: who is signed in with a key that has this scope; other keys see a page of 403."""

    def check(viewer: SignedIn) -> Viewer:
        check_scope(viewer.principal, scope)
        return viewer

    return check


def check_token(viewer: Viewer, given: str) -> None:
    """Whether what is sent comes from a page of this session. Raises ApiError (403)."""
    if not hmac.compare_digest(viewer.csrf_token.encode(), given.encode()):
        raise ApiError(
            403, "This form is not of your present session. Open the page anew, then try again.", code="csrf"
        )


def check_origin(request: Request) -> None:
    """Whether a form was sent by a page of this host, as far as the browser says so. Raises ApiError (403)."""
    origin = request.headers.get("origin")
    if origin is not None and _host_of(origin) != request.headers.get("host"):
        raise ApiError(403, "This form was sent from another site. Nothing was done.", code="foreign_origin")


def _host_of(origin: str) -> str:
    """Empty, which no host is, where it can't be told."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


async def read_fields(request: Request) -> dict[str, str]:
    """The fields of a form without files, each once. Raises ApiError (403) for a form of another site."""
    check_origin(request)
    async with request.form(max_files=0, max_fields=_MOST_FIELDS) as form:
        return {name: value.replace("\x00", "") for name, value in form.items() if isinstance(value, str)}


async def _form(request: Request, viewer: SignedIn) -> Mapping[str, str]:
    fields = await read_fields(request)
    check_token(viewer, request.headers.get(CSRF_HEADER) or fields.get(CSRF_FIELD, ""))
    return fields


#: The fields of a form that a page of this session has sent.
SignedForm = Annotated[Mapping[str, str], Depends(_form)]
