"""Sending webhooks over HTTP: many at once in one thread, each for a bounded time and to a judged address alone.

No proxies, no redirects, no cookies, and nothing is read of an answer but its status.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Self

import httpx2

from pipeline.settings import Settings
from pipeline.webhooks.addresses import ForbiddenUrlError, allowed_address, check_url, port_of, resolve

#: Longest time for one attempt, from the look-up of the host to the status of the answer, in seconds.
ATTEMPT_SECONDS: Final = 10.0
#: Look-ups of hosts at once, each of which may block its thread for longer than an attempt takes: so many that those of
#: one tenant keep no other's waiting.
_NUM_RESOLVERS: Final = 64
_MAX_ERROR_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent."""

    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    #: Of HTTP; None where there was no answer.
    status: int | None
    #: Why it did not succeed.
    error: str | None
    #: How long it took, in milliseconds.
    ms: int

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def send(message: Message, settings: Settings, seconds: float = ATTEMPT_SECONDS) -> Answer:
    """Send one; what came of it after `seconds` at the latest."""

    async def send_it() -> Answer:
        async with Sender(settings) as sender:
            return await sender.send(message, seconds)

    return asyncio.run(send_it())


class Sender:
    """Sends any number of messages at once. Belongs to an event loop, as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._transport = httpx2.AsyncHTTPTransport(
            verify=ssl.create_default_context(), limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False
        )
        # Of its own, since the loop's is waited for at its end, and a look-up may take long.
        self._resolvers = ThreadPoolExecutor(_NUM_RESOLVERS, thread_name_prefix="webhook-resolver")

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._transport.aclose()
        finally:
            self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def send(self, message: Message, seconds: float) -> Answer:
        """What came of one message, after `seconds` at the latest; never raises."""
        began = time.monotonic()
        status, error = None, None
        try:
            async with asyncio.timeout(seconds):
                status = await _post(self._transport, self._resolvers, message, self._settings)
        except TimeoutError:
            error = f"There was no answer within {seconds:g} s."
        except ForbiddenUrlError as refused:
            error = str(refused)
        except ssl.SSLCertVerificationError as refused:
            error = f"The certificate is not valid: {refused.verify_message}."
        except Exception as failure:  # noqa: BLE001 - whatever ails one of them, the others are told
            error = f"No connection: {_reason(failure)}"
        if status is not None and not 200 <= status < 300:
            error = f"The receiver answered with status {status}."
        return Answer(status, error, round((time.monotonic() - began) * 1000))


async def _post(
    transport: httpx2.AsyncHTTPTransport, resolvers: ThreadPoolExecutor, message: Message, settings: Settings
) -> int:
    """The status of the answer. The address is that which was judged, whatever the name says a moment later."""
    parts = check_url(message.url, settings)
    host, port = str(parts.hostname), port_of(parts)
    found = await asyncio.get_running_loop().run_in_executor(resolvers, resolve, host, port)
    address = allowed_address(found, settings)
    path = parts.path or "/"
    request = httpx2.Request(
        "POST",
        httpx2.URL(
            scheme=parts.scheme,
            host=address,
            port=port,
            raw_path=(f"{path}?{parts.query}" if parts.query else path).encode(),
        ),
        headers={
            "host": parts.netloc,
            "content-type": "application/json",
            "user-agent": f"Ryzanstein/{version('ryzanstein')}",
            **message.headers,
        },
        content=message.body,
        # The certificate is that of the name. Times are bounded as a whole, around all of this.
        extensions={"sni_hostname": host},
    )
    response = await transport.handle_async_request(request)
    try:
        return response.status_code
    finally:
        await response.aclose()


def _reason(error: Exception) -> str:
    """Without an address: it may be one that a tenant has no business with."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    text = (cause.strerror if isinstance(cause, OSError) else None) or type(error).__name__
    return text.rstrip(".")[:_MAX_ERROR_CHARS] + "."
