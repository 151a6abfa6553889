"""What waits in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ResponseError

from pipeline.celery import BROKER_ERRORS, PROMPT_OPTIONS, app
from pipeline.settings import get_settings
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values

REDIS_ERRORS: Final[tuple[type[Exception], ...]] = BROKER_ERRORS


def use_redis(read: Callable[[Any], Values]) -> Values:
    """With a channel of kombu, on a connection of its own. Raises BROKER_ERRORS."""
    url = get_settings().redis_url.get_secret_value()
    with app.connection_for_read(url, transport_options=PROMPT_OPTIONS, connect_timeout=1) as connection:
        return read(connection.default_channel)


class RedisSection:
    """`queues` tells the names of those that there are."""

    def __init__(self, queues: Callable[[], list[str]]) -> None:
        self._queues = queues

    def check(self, channel: Any) -> Values:
        """Whether it answers."""
        channel.client.ping()
        return {}

    def read_queues(self, channel: Any) -> Values:
        return {names.QUEUE_MESSAGES: [((queue,), float(channel._size(queue))) for queue in self._queues()]}

    def read_memory(self, channel: Any) -> Values:
        """Nothing where our user may not ask that."""
        try:
            info = {**channel.client.info("memory"), **channel.client.info("clients")}
        except ResponseError:
            return {}
        return {
            names.REDIS_MEMORY: [((), float(info["used_memory"]))],
            names.REDIS_CLIENTS: [((), float(info["connected_clients"]))],
        }
