"""Rate limits towards clients: OpenAI's headers, and 429 for who calls too fast."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import Request

from pipeline.gateway.errors import ApiError
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.rate_limits import BYTES_PER_TOKEN, Exceeded, RateLimits, Standing


def count_request(request: Request, caller: Principal) -> None:
    """One more call, whose answer then has the headers. Raises ApiError (429)."""
    _heed(request, _limits(request).count_request(caller))


def count_submission(request: Request, caller: Principal, num_file_bytes: int) -> None:
    """A batch of an input file of this length, as tokens. Raises ApiError (429)."""
    _heed(request, _limits(request).count_tokens(caller, math.ceil(num_file_bytes / BYTES_PER_TOKEN)))


def headers_of(standing: Standing) -> Mapping[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, of the tightest limit of each kind."""
    headers = {}
    for kind, window in standing.windows.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(window.limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(window.remaining)
        headers[f"x-ratelimit-reset-{kind}"] = duration_text(window.reset_seconds)
    return headers


def duration_text(seconds: float) -> str:
    """As OpenAI writes it: `250ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"


def _limits(request: Request) -> RateLimits:
    limits: RateLimits = request.app.state.rate_limits
    return limits


def _heed(request: Request, standing: Standing) -> None:
    if standing.windows:
        request.state.headers = headers_of(standing)
    if standing.exceeded is not None:
        raise _too_fast(standing.exceeded)


def _too_fast(exceeded: Exceeded) -> ApiError:
    whose = "this key" if exceeded.is_of_key else "your organization"
    what = f"Rate limit reached for {whose} on {exceeded.kind} per minute: Limit {exceeded.limit}, requested "
    if exceeded.retry_seconds == 0:
        return ApiError(
            429,
            f"{what}{exceeded.wanted}. This can never pass: split the input file.",
            kind=exceeded.kind.value,
            code="rate_limit_exceeded",
            headers={"x-should-retry": "false"},
        )
    return ApiError(
        429,
        f"{what}{exceeded.wanted}. Please try again in {exceeded.retry_seconds}s.",
        kind=exceeded.kind.value,
        code="rate_limit_exceeded",
        headers={"Retry-After": str(exceeded.retry_seconds)},
    )
