"""Asks an HTTP server how it is, with nothing but the standard library."""

from __future__ import annotations

import threading
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit

_SECONDS = 3.0
_LOCAL = ("127.0.0.1", "::1", "localhost")


def http_status(url: str) -> int | None:
    """The status of a GET of `url`; None where nothing answers within 3 s, or not in HTTP."""
    answers: list[int | None] = []
    # In a thread that may be left behind: what is looked up, or comes byte by byte, is waited for by no timeout.
    asking = threading.Thread(target=lambda: answers.append(_ask(url)), name="http-probe", daemon=True)
    asking.start()
    asking.join(_SECONDS)
    return answers[0] if answers else None


def proxy_variable(url: str) -> str | None:
    """The variable of the environment that names the proxy by which `url` is asked; None where it is asked itself."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    is_ours = parts.hostname is None or parts.hostname in _LOCAL
    if is_ours or parts.scheme not in urllib.request.getproxies() or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return f"{parts.scheme}_proxy"


def _ask(url: str) -> int | None:
    try:
        # A proxy that the environment names knows nothing of this machine's own ports.
        proxies: dict[str, str] | None = {} if urlsplit(url).hostname in _LOCAL else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        with opener.open(url, timeout=_SECONDS) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except (OSError, ValueError, HTTPException):  # the last: it speaks something else
        return None
