"""Signing in with a key, and out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pipeline.console.navigation import HOME
from pipeline.console.rendering import render, see_other
from pipeline.console.signing_in import COOKIE, SignedForm, read_fields
from pipeline.gateway.errors import too_many_failures
from pipeline.gateway.failed_keys import FailedKeys
from pipeline.gateway.rate_limits import count_request
from pipeline.settings import get_settings
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import begin_session, end_session
from pipeline.tenancy.keys import InvalidKeyError, authenticate

router = APIRouter()


@router.get("/sign-in")
def show_sign_in(request: Request, next: str = HOME, ended: bool = False, out: bool = False) -> Response:
    notice = "Your session has ended. Sign in again." if ended else "You have signed out." if out else None
    return render(request, "sign_in.html", next=_local(next), notice=notice, mistake=None)


@router.post("/sign-in")
def sign_in(request: Request, fields: Annotated[dict[str, str], Depends(read_fields)]) -> Response:
    """The key is looked at once, and kept nowhere."""
    next_path = _local(fields.get("next", HOME))
    try:
        with transaction() as session:
            principal = authenticate(session, fields.get("key", "").strip())
            request.state.caller = principal  # for the log
            count_request(request, principal)
            if (earlier := request.cookies.get(COOKIE)) is not None:
                end_session(session, earlier)
            token = begin_session(session, principal)
    except InvalidKeyError:
        failed: FailedKeys = request.app.state.failed_keys
        if seconds := failed.add(request.client.host if request.client is not None else ""):
            raise too_many_failures(seconds) from None
        mistake = "This is no key of this service, or it was revoked, or has expired."
        return render(request, "sign_in.html", status=401, next=next_path, notice=None, mistake=mistake)
    response = see_other(next_path)
    response.set_cookie(
        COOKIE,
        token,
        max_age=get_settings().console_session_hours * 3600,
        path="/console",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/sign-out")
def sign_out(request: Request, form: SignedForm) -> Response:
    with transaction() as session:
        end_session(session, request.cookies[COOKIE])
    response = see_other("/console/sign-in?out=1")
    response.delete_cookie(COOKIE, path="/console", httponly=True, samesite="lax")
    return response


def _local(path: str) -> str:
    """Where to go on after signing in: a page of the console, and nowhere else."""
    try:
        parts = urlsplit(path)
    except ValueError:  # such as `//[`
        return HOME
    is_ours = not parts.scheme and not parts.netloc and parts.path.startswith("/console/")
    return path if is_ours and "\\" not in path and path.isprintable() else HOME
