"""The tasks of the control worker: each calls one plain function. What they return is what Flower shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from pipeline.billing import drafting, nightly
from pipeline.celery import CANCEL, DELIVER, DRAFT, FINALIZE, KEEP_UP, LOOK_AT_BOOKS, PREPARE, QUOTE, RELAY, SWEEP, app
from pipeline.errors import PipelineError
from pipeline.jobs import cancelling, finalizing, outbox, preparing, quoting, sweeping, upkeep
from pipeline.telemetry.logs import summarize_error
from pipeline.telemetry.metrics.tasks import TASKS
from pipeline.webhooks import delivering

log = structlog.get_logger(__name__)


class ControlTaskError(PipelineError):
    """A control task failed; the log of the control worker says why."""


def _task(name: str) -> Callable[[Callable[..., dict[str, Any]]], Any]:
    """A task whose errors are in our log alone: events carry an error's text to whoever watches, and repeat it."""

    def register(function: Callable[..., dict[str, Any]]) -> Any:
        @functools.wraps(function)
        def run(*args: str) -> dict[str, Any]:
            try:
                # Whatever is logged meanwhile says of which task.
                with structlog.contextvars.bound_contextvars(task=name), TASKS.run(name):
                    return function(*args)
            except DBAPIError as error:  # PostgreSQL is away or overloaded: the next sweep begins again
                log.warning("task failed", task=name, args=args, reason=summarize_error(error))
            except Exception as error:  # told apart from the above by its traceback
                log.error("task failed", task=name, args=args, exc_info=error)
            raise ControlTaskError

        TASKS.know(name)
        return app.task(name=name, throws=(ControlTaskError,))(run)

    return register


@_task(PREPARE)
def prepare(batch_id: str) -> dict[str, Any]:
    """Intake and planning of this batch, and of every other that waits for it."""
    return {"batches": preparing.prepare_waiting()}


@_task(CANCEL)
def cancel(batch_id: str) -> dict[str, Any]:
    """The waiting requests of a batch that is cancelling."""
    return {"requests": cancelling.end_cancelled(batch_id)}


@_task(FINALIZE)
def finalize(batch_id: str) -> dict[str, Any]:
    """Close a batch of which every request has an outcome."""
    return {"status": finalizing.finalize(batch_id)}


@_task(QUOTE)
def quote(quote_id: str) -> dict[str, Any]:
    """Compute this quote, and every other that waits for it."""
    return {"quotes": quoting.compute_waiting()}


@_task(SWEEP)
def sweep() -> dict[str, Any]:
    """Set right what a lost message, a dead group or the clock has left."""
    done = sweeping.sweep()
    TASKS.swept(sweeping.PARTS, done)
    return done


@_task(RELAY)
def relay() -> dict[str, Any]:
    """Publish what direct publishing missed."""
    return {"messages": outbox.publish()}


@_task(DRAFT)
def draft() -> dict[str, Any]:
    """Make the invoices of the month before that are missing."""
    return {"invoices": drafting.draft_invoices()}


@_task(KEEP_UP)
def keep_up() -> dict[str, Any]:
    """Make partitions for the months to come, set roll-ups right, and drop what is no longer kept."""
    return upkeep.keep_up()


@_task(DELIVER)
def deliver() -> dict[str, Any]:
    """Send the webhooks that are due."""
    return {**delivering.deliver_due()}


@_task(LOOK_AT_BOOKS)
def look_at_books() -> dict[str, Any]:
    """Settle credit, and report where the books differ."""
    return nightly.look_at_books()
