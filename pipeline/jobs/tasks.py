"""The tasks of the control worker: each calls one plain function."""

from __future__ import annotations

from pipeline.celery import RELAY, app
from pipeline.jobs import outbox


@app.task(name=RELAY)  # type: ignore[untyped-decorator]
def relay() -> int:
    """Publish what direct publishing missed."""
    return outbox.publish()
