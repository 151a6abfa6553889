"""The tasks of the control worker: each calls one plain function. What they return is what Flower shows."""

from __future__ import annotations

from pipeline.celery import CANCEL, FINALIZE, PREPARE, RELAY, SWEEP, app
from pipeline.jobs import cancelling, finalizing, outbox, preparing, sweeping


@app.task(name=PREPARE)  # type: ignore[untyped-decorator]
def prepare(batch_id: str) -> dict[str, int]:
    """Intake and planning of this batch, and of every other that waits for it."""
    return {"batches": preparing.prepare_waiting()}


@app.task(name=CANCEL)  # type: ignore[untyped-decorator]
def cancel(batch_id: str) -> dict[str, int]:
    """The waiting requests of a batch that is cancelling."""
    return {"requests": cancelling.end_cancelled(batch_id)}


@app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
def finalize(batch_id: str) -> dict[str, str | None]:
    """Close a batch of which every request has an outcome."""
    return {"status": finalizing.finalize(batch_id)}


@app.task(name=SWEEP)  # type: ignore[untyped-decorator]
def sweep() -> dict[str, int]:
    """Set right what a lost message, a dead group or the clock has left."""
    return sweeping.sweep()


@app.task(name=RELAY)  # type: ignore[untyped-decorator]
def relay() -> dict[str, int]:
    """Publish what direct publishing missed."""
    return {"messages": outbox.publish()}
