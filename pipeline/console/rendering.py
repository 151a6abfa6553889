"""Pages from templates, with what all of them need."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.console.assets import asset_url
from pipeline.console.formatting import FILTERS
from pipeline.console.navigation import entries_for
from pipeline.settings import get_settings
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

#: Of the cookie that keeps what the button chose; anything else follows the system.
THEME_COOKIE: Final = "ryzanstein_theme"
_THEMES: Final = ("light", "dark")


def render(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """A page. Templates get `context`, `viewer` (None: nobody is signed in), `may`, `entries` and what forms need."""
    viewer: Viewer | None = request.scope.get("state", {}).get("viewer")
    given = request.cookies.get(THEME_COOKIE)
    page = _environment().get_template(template)
    text = page.render(
        viewer=viewer,
        may=lambda name: viewer is not None and viewer.principal.may(Scope(name)),
        entries=[] if viewer is None else entries_for(viewer, request.scope["path"]),
        flower_url=get_settings().flower_url,
        theme=given if given in _THEMES else None,
        nonce=request.state.nonce,
        csrf_token="" if viewer is None else viewer.csrf_token,
        request_path=request.scope["path"],
        **context,
    )
    return HTMLResponse(text, status_code=status, headers=dict(headers or {}))


def see_other(path: str) -> RedirectResponse:
    """What a form that has done its work is answered with."""
    return RedirectResponse(path, status_code=303)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals["asset"] = asset_url
    return environment
