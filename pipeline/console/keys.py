"""Keys: which there are, making one, and rotating or revoking those that may do no more than one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.console.failures import not_found
from pipeline.console.rendering import render, see_other
from pipeline.console.signing_in import SignedForm, viewer_with
from pipeline.errors import UserError
from pipeline.tables import ApiKey
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.key_rights import covers, create_key_for, revoke_key_for, rotate_key_for
from pipeline.tenancy.keys import Principal, UnknownKeyError
from pipeline.tenancy.projects import list_projects
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Keys of a page.
_PAGE: Final = 100
#: How long a key lasts, by what is chosen.
_LIVES: Final[Mapping[str, timedelta | None]] = {
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "365d": timedelta(days=365),
    "never": None,
}
#: How long the old one still holds.
_GRACES: Final[Mapping[str, timedelta]] = {
    "0m": timedelta(0),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}


@dataclass(frozen=True)
class Row:
    key: ApiKey
    #: None: of the whole tenant.
    project: str | None
    #: `holds`, `revoked` or `expired`.
    state: str
    #: Whether it was replaced by another.
    is_replaced: bool
    #: Whether the viewer may rotate and revoke it.
    is_manageable: bool
    is_own: bool


Reader = Annotated[Viewer, Depends(viewer_with(Scope.KEYS_READ))]
Writer = Annotated[Viewer, Depends(viewer_with(Scope.KEYS_WRITE))]


@router.get("/keys")
def show_keys(request: Request, viewer: Reader, after: str | None = None) -> Response:
    return _page(request, viewer, after=after)


@router.post("/keys")
def make_key(request: Request, viewer: Writer, form: SignedForm) -> Response:
    """The page shows the new key, this once; nothing that a browser keeps has it."""
    chosen = [scope for scope in Scope if form.get(_field(scope)) == "on"]
    try:
        with transaction() as session:
            row, secret = create_key_for(
                session,
                viewer.principal,
                _name(form),
                project_id=form.get("project") or None,
                scopes=None if form.get("rights") == "all" else chosen,
                expires_after=_choice(_LIVES, form.get("life", "")),
            )
    except UserError as error:
        return _page(request, viewer, mistake=str(error), given=form)
    return _page(request, viewer, made=row, secret=secret)


@router.post("/keys/{key_id}/rotate")
def replace_key(request: Request, viewer: Writer, form: SignedForm, key_id: str) -> Response:
    try:
        with transaction() as session:
            row, secret = rotate_key_for(session, viewer.principal, key_id, _choice(_GRACES, form.get("grace", "")))
    except UnknownKeyError:
        raise not_found("key") from None
    except UserError as error:
        return _page(request, viewer, mistake=str(error))
    return _page(request, viewer, made=row, secret=secret)


@router.post("/keys/{key_id}/revoke")
def end_key(request: Request, viewer: Writer, form: SignedForm, key_id: str) -> Response:
    """Who revokes the key of the own session has signed out by it."""
    try:
        with transaction() as session:
            revoke_key_for(session, viewer.principal, key_id)
    except UnknownKeyError:
        raise not_found("key") from None
    except UserError as error:
        return _page(request, viewer, mistake=str(error))
    return see_other("/console/keys")


def _page(
    request: Request,
    viewer: Viewer,
    *,
    after: str | None = None,
    mistake: str | None = None,
    given: Mapping[str, str] | None = None,
    made: ApiKey | None = None,
    secret: str | None = None,
) -> Response:
    caller = viewer.principal
    with transaction() as session:
        projects = {
            project.id: project
            for project in list_projects(session, caller.tenant_id)
            if caller.project_id in (None, project.id)
        }
        rows, next_id = _rows(session, caller, {one.id: one.name for one in projects.values()}, after)
    return render(
        request,
        "keys.html",
        status=200 if mistake is None else 400,
        # Also the answer to a form: whoever goes back to it sees no key any more.
        headers={"cache-control": "no-store"},
        rows=rows if caller.may(Scope.KEYS_READ) else [],
        next_url=None if next_id is None else f"/console/keys?after={next_id}",
        first_url="/console/keys" if after else None,
        projects=[project for project in projects.values() if project.archived_at is None],
        scopes=[(scope, _field(scope)) for scope in Scope if caller.may(scope)],
        has_all_scopes=caller.scopes is None,
        is_of_project=caller.project_id is not None,
        lives=list(_LIVES),
        graces=list(_GRACES),
        mistake=mistake,
        given=given or {},
        made=made,
        secret=secret,
    )


def _rows(
    session: Session, caller: Principal, projects: Mapping[str, str], after: str | None
) -> tuple[list[Row], str | None]:
    """The newest first, and the id that the next page begins after."""
    query = (
        select(ApiKey).where(ApiKey.tenant_id == caller.tenant_id).order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
    )
    if caller.project_id is not None:
        query = query.where(ApiKey.project_id == caller.project_id)
    if after is not None:
        cursor = session.get(ApiKey, after)
        if cursor is None or cursor.tenant_id != caller.tenant_id or not _is_in_project(cursor, caller):
            raise not_found("page")
        before = (ApiKey.created_at < cursor.created_at) | (
            (ApiKey.created_at == cursor.created_at) & (ApiKey.id < cursor.id)
        )
        query = query.where(before)
    keys = session.scalars(query.order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(_PAGE + 1)).all()
    ids = [key.id for key in keys]
    replaced = set(session.scalars(select(ApiKey.rotated_from).where(ApiKey.rotated_from.in_(ids))))
    now = datetime.now(UTC)
    rows = [
        Row(
            key=key,
            project=None if key.project_id is None else projects.get(key.project_id, key.project_id),
            state=_state(key, now),
            is_replaced=key.id in replaced,
            is_manageable=_state(key, now) == "holds" and caller.may(Scope.KEYS_WRITE) and covers(caller, key),
            is_own=key.id == caller.api_key_id,
        )
        for key in keys[:_PAGE]
    ]
    return rows, keys[_PAGE - 1].id if len(keys) > _PAGE else None


def _is_in_project(key: ApiKey, caller: Principal) -> bool:
    return caller.project_id in (None, key.project_id)


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "holds"


def _field(scope: Scope) -> str:
    return f"scope_{scope.value.replace(':', '_')}"


def _name(form: Mapping[str, str]) -> str:
    name = form.get("name", "").strip()
    if not 0 < len(name) <= 200:
        raise UserError("A key needs a name of at most 200 characters, by which its usage is told apart.")
    return name


Choice = TypeVar("Choice", timedelta, timedelta | None)


def _choice(choices: Mapping[str, Choice], given: str) -> Choice:
    if given not in choices:
        raise UserError(f"{given[:32]!r} can't be chosen here: {', '.join(choices)}.")
    return choices[given]
