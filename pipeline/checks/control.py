"""Whether control is at work: without it batches are neither prepared nor ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kombu.pidbox import Mailbox

from pipeline.celery import BROKER_ERRORS, PROMPT_OPTIONS, app
from pipeline.checks.findings import Finding, ok, warning
from pipeline.settings import get_settings

#: One that works on something answers too; one that starts, or a machine that is very busy, does not.
_ANSWER_SECONDS: Final = 3.0


def check_control() -> Iterator[Finding]:
    """Asks for an answer through Redis. Finds nothing where Redis is away, which is a finding of its own."""
    url = get_settings().redis_url.get_secret_value()
    try:
        with app.connection_for_read(url, transport_options=PROMPT_OPTIONS, connect_timeout=2) as connection:
            # As `app.control.broadcast`, which would publish over a connection that the app then keeps.
            mailbox = Mailbox(app.conf.control_exchange, "fanout", accept=["json"], serializer="json")  # type: ignore[no-untyped-call]
            asked = {"reply": True, "timeout": _ANSWER_SECONDS, "limit": 1, "pattern": "control@*", "matcher": "glob"}
            answers = mailbox(connection)._broadcast("ping", **asked)
    except BROKER_ERRORS:
        return
    names = sorted(name for answer in answers or [] for name in answer)
    if names:
        yield ok("control", f"{names[0]} answers")
    else:
        advice = "Start `ryzanstein control`: without it batches are neither prepared nor ended."
        yield warning("control", f"gave no answer within {_ANSWER_SECONDS:g} s", advice)
