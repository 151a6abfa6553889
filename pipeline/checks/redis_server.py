"""What is wanted of Redis. It may lose everything: nothing here keeps the service from its work."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.settings import PREFIX, get_settings
from pipeline.telemetry.logs import summarize_error

#: One that takes longer to answer slows every ticket down, in seconds.
_PING_SECONDS: Final = 0.05

#: First release of each line in which neither CVE-2025-49844 (Lua) nor CVE-2026-23479 (unblocking BRPOP) lets a client
#: with the password run code; Celery works with both commands. No such release is known of lines that are not here.
_SOUND_REDIS: Final[Mapping[tuple[int, int], int]] = {(6, 2): 20, (7, 4): 9, (8, 2): 6, (8, 4): 3, (8, 6): 3}
_SOUND_VALKEY: Final[Mapping[tuple[int, int], int]] = {(7, 2): 11, (8, 0): 6, (8, 1): 4}


def check_redis(ping_seconds: float = _PING_SECONDS) -> Iterator[Finding]:
    """Of the Redis in the settings, which should answer a PING within `ping_seconds`."""
    retry = Retry(NoBackoff(), 0)
    url = get_settings().redis_url.get_secret_value()
    try:
        with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=retry) as client:
            wrong = [*_redis(client, ping_seconds)]
            version = client.info("server")["redis_version"]
    except RedisError as error:
        yield failed("redis", f"no answer ({summarize_error(error)})", f"Start it, and check {PREFIX}REDIS_URL.")
        return
    yield ok("redis", str(version))
    yield from wrong


def _redis(client: Redis, ping_seconds: float) -> Iterator[Finding]:
    if not _is_local(client):
        yield from check_release(client.info("server"))
    memory = client.info("memory")
    policy = memory.get("maxmemory_policy") or _config(client, "maxmemory-policy")
    if policy not in ("noeviction", None):
        yield warning(
            "redis maxmemory-policy", f"evicts by {policy}", "Set maxmemory-policy to noeviction: tickets get lost."
        )
    if (limit := int(memory.get("maxmemory", 0))) and int(memory["used_memory"]) > 0.9 * limit:
        yield warning("redis memory", f"{memory['used_memory']} of {limit} bytes are used", "Raise maxmemory.")
    if (seconds := _ping_seconds(client)) > ping_seconds:
        yield warning(
            "redis latency",
            f"{seconds * 1000:.0f} ms for a PING",
            "Bring Redis nearer to the groups, or find out what else keeps it busy (SLOWLOG GET).",
        )


def _is_local(client: Redis) -> bool:
    """Whether it listens to processes of its own machine alone, as an embedded one does."""
    addresses = (_config(client, "bind") or "*").split()
    return all(address.lstrip("-") in ("127.0.0.1", "::1", "localhost") for address in addresses)


def check_release(server: Mapping[str, Any]) -> Iterator[Finding]:
    """`server` is what INFO says under this heading."""
    name, sound = "Redis", _SOUND_REDIS
    release = str(server["redis_version"])
    if "valkey_version" in server:
        name, sound, release = "Valkey", _SOUND_VALKEY, str(server["valkey_version"])
    numbers = [int(number) for number in re.findall(r"\d+", release)[:3]]
    line, patch = (numbers[0], numbers[1]), numbers[2]
    if line > max(sound) or patch >= sound.get(line, patch + 1):
        return
    known = ", ".join(f"{major}.{minor}.{least}" for (major, minor), least in sound.items())
    yield warning(
        "redis version",
        f"{name} {release} has faults by which a client that has the password may run code of its own",
        f"Use {name} {known} or newer (CVE-2025-49844, CVE-2026-23479); keep it off networks that others reach.",
    )


def _config(client: Redis, name: str) -> str | None:
    """A setting, or None from a server that does not show it, as hosted ones don't."""
    try:
        value = client.config_get(name).get(name)
    except ResponseError:
        return None
    return None if value is None else str(value)


def _ping_seconds(client: Redis) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
