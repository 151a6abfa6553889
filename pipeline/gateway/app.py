"""The application: routes, errors and what holds for every request."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from pipeline.gateway import (
    batch_actions,
    batch_events,
    batches,
    budgets,
    explanations,
    files,
    health,
    invoices,
    models,
    quotes,
    usage,
    webhooks,
)
from pipeline.gateway.errors import add_error_handlers
from pipeline.gateway.failed_keys import FailedKeys
from pipeline.gateway.metering import GatewayMetrics, MetricsMiddleware
from pipeline.gateway.middleware import (
    ANSWER_SECONDS,
    UPLOAD_ANSWER_SECONDS,
    DeadlineMiddleware,
    LimitsMiddleware,
    RequestMiddleware,
)
from pipeline.gateway.progress_feed import ProgressFeed
from pipeline.gateway.tracing import TracingMiddleware
from pipeline.schemas.errors import ErrorResponse
from pipeline.settings import get_settings
from pipeline.telemetry import tracing
from pipeline.tenancy.rate_limits import RateLimits

_DESCRIPTION = "Batch generation on GPUs you own. Objects, limits and errors are those of the OpenAI Batch API."


def create_app(
    *, answer_seconds: float = ANSWER_SECONDS, upload_answer_seconds: float = UPLOAD_ANSWER_SECONDS
) -> FastAPI:
    """The gateway as an ASGI application. Its only state is of failed keys, and of Redis. Every answer begins within
    these times."""
    app = FastAPI(
        title="Ryzanstein",
        description=_DESCRIPTION,
        # The pages that show the schema load scripts from elsewhere; the schema itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        responses={"default": {"model": ErrorResponse, "description": "Anything that is no success"}},
    )
    app.state.failed_keys = FailedKeys(get_settings().key_failures_per_minute)
    app.state.rate_limits = RateLimits(get_settings())
    app.state.progress = ProgressFeed()
    for resource in (
        files,
        quotes,
        batches,
        batch_actions,
        batch_events,
        explanations,
        models,
        usage,
        budgets,
        invoices,
        webhooks,
        health,
    ):
        app.include_router(resource.router)
    _add_console(app)
    add_error_handlers(app)
    # The last one added is the first to see a request.
    app.add_middleware(LimitsMiddleware)
    app.add_middleware(DeadlineMiddleware, seconds=answer_seconds, upload_seconds=upload_answer_seconds)
    app.add_middleware(RequestMiddleware)
    if tracing.is_on():
        app.add_middleware(TracingMiddleware)
    app.state.metrics = GatewayMetrics()
    app.add_middleware(MetricsMiddleware, metrics=app.state.metrics)
    return app


def _add_console(app: FastAPI) -> None:
    from pipeline.console import create_console  # which is made of parts of the gateway

    app.mount("/console", create_console(app.state), name="console")
    app.add_route("/console", lambda _: RedirectResponse("/console/", status_code=303), include_in_schema=False)


def _operation_id(route: APIRoute) -> str:
    return route.name
