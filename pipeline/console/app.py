"""The console as an application of its own, which the gateway mounts: with pages for errors, and stricter headers."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import State

from pipeline.console import (
    assets,
    batch,
    batch_actions,
    batch_requests,
    batches,
    budgets,
    costs,
    groups,
    keys,
    queue,
    quotes,
    sessions,
    uploads,
    usage,
)
from pipeline.console.failures import add_failure_pages
from pipeline.console.headers import HeadersMiddleware
from pipeline.console.navigation import HOME


def create_console(state: State) -> FastAPI:
    """`state` is the gateway's: who calls the console and the API too often is one and the same."""
    console = FastAPI(
        title="Ryzanstein console", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    console.state = state
    for pages in (assets, sessions, batches, batch, batch_requests, batch_actions, uploads, quotes):
        console.include_router(pages.router)
    for pages in (usage, costs, budgets, keys, groups, queue):  # what operators look at, and what people pay
        console.include_router(pages.router)
    console.add_api_route("/", _home, include_in_schema=False)
    add_failure_pages(console)
    console.add_middleware(HeadersMiddleware)
    return console


def _home(request: Request) -> RedirectResponse:
    return RedirectResponse(HOME, status_code=303)
