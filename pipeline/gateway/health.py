"""`/healthz`: this process answers. `/readyz`: it can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter
from pydantic import BaseModel
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.exc import SQLAlchemyError

from pipeline.gateway.errors import unavailable
from pipeline.settings import get_settings
from pipeline.tables.migrating import describe_lack, revisions

router = APIRouter(tags=["health"])

#: Whoever asks must know within 2 s.
_READY_SECONDS = 1.8

# Threads of their own: a server that hangs occupies these, and the answer is still in time.
_checks = ThreadPoolExecutor(max_workers=4, thread_name_prefix="readyz")


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    """Redis is reported and not required: batches are accepted without it, and start when it is back."""

    status: str
    postgresql: str
    redis: str


# Neither needs a thread of the routes': both answer when all of those wait for a database.
@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive."""
    return Health()


@router.get("/readyz")
async def readyz() -> Readiness:
    """PostgreSQL is reachable and has the schema of this version; 503 otherwise."""
    postgresql, redis = await asyncio.gather(_in_time(_postgresql), _in_time(_redis))
    if postgresql != "ok":
        raise unavailable(f"PostgreSQL: {postgresql}.")
    return Readiness(status="ready", postgresql=postgresql, redis=redis)


async def _in_time(check: Callable[[], str]) -> str:
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(_checks, check), _READY_SECONDS)
    except TimeoutError:
        return f"no answer within {_READY_SECONDS:g} s"


def _postgresql() -> str:
    try:
        url = get_settings().database_url.get_secret_value()
        lack = describe_lack(*revisions(url))
    except SQLAlchemyError:
        return "not reachable"
    return "ok" if lack is None else f"{lack}: run `ryzanstein migrate`"


def _redis() -> str:
    url = get_settings().redis_url.get_secret_value()
    retry = Retry(NoBackoff(), 0)
    try:
        with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=retry) as client:
            client.ping()
    except RedisError:
        return "not reachable"
    return "ok"
