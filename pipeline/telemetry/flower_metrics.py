"""Flower's metrics, through control's port: Flower itself listens on loopback and asks for its password."""

from __future__ import annotations

import base64
import urllib.request
from http.client import HTTPException
from typing import Final

from pipeline.settings import Settings

#: Where control shows them.
PATH: Final = "/metrics/flower"

_SECONDS: Final = 3.0


def read_flower_metrics(settings: Settings) -> bytes | None:
    """What Flower of this machine says at its `/metrics`; None where none answers, or it wants another password."""
    host = "127.0.0.1" if settings.flower_host in ("", "0.0.0.0", "::") else settings.flower_host  # noqa: S104  to ask
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(f"http://{host}:{settings.flower_port}/metrics")
    password = settings.flower_password.get_secret_value() if settings.flower_password else ""
    login = base64.b64encode(f"{settings.flower_user}:{password}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    # A proxy that the environment names knows nothing of this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as response:
            return bytes(response.read())
    except (OSError, HTTPException):  # the last: it speaks something else, or stops in the middle
        return None
