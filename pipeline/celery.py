"""The Celery app, its queues and its settings, so that `celery -A pipeline …` works.

PostgreSQL is the queue; a message in Redis is only a hint that there is work. It may be lost, doubled or late.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Final

from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.exceptions import CPendingDeprecationWarning
from celery.schedules import crontab
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis import RedisError

from pipeline.redis_urls import tls_options
from pipeline.settings import get_settings

# --- names of the tasks, as Flower shows them
PREPARE: Final = "control.prepare"  #: args [batch_id]: intake and planning of a batch that is `validating`.
CANCEL: Final = "control.cancel"  #: args [batch_id]: give the waiting requests of a cancelled batch their outcome.
FINALIZE: Final = "control.finalize"  #: args [batch_id]: close a batch of which every request has an outcome.
QUOTE: Final = "control.quote"  #: args [quote_id]: compute a quote.
SWEEP: Final = "control.sweep"  #: no args, from beat.
RELAY: Final = "control.relay"  #: no args, from beat.
DRAFT: Final = "control.draft"  #: no args, from beat: the invoices of the month before.
LOOK_AT_BOOKS: Final = "control.look_at_books"  #: no args, from beat: credit is settled, and the books compared.
KEEP_UP: Final = "control.keep_up"  #: no args, from beat: partitions, roll-ups and retention.
DELIVER: Final = "webhook.deliver"  #: no args: send the webhooks that are due.
GENERATE: Final = "generate.slice"  #: args [model]: a ticket; entitles the receiving group to claim one slice.

#: What the arguments of a task are, for `describe_args`.
_ARG_NAMES: Final = {
    PREPARE: ("batch",),
    CANCEL: ("batch",),
    FINALIZE: ("batch",),
    QUOTE: ("quote",),
    GENERATE: ("model",),
}

CONTROL_QUEUE: Final = "control"

#: In front of every key in Redis, so that a Redis can be shared and an ACL can name us.
KEY_PREFIX: Final = "ryzanstein:"

#: The same for workers, publishers and Flower.
TRANSPORT_OPTIONS: Final[dict[str, Any]] = {
    "global_keyprefix": KEY_PREFIX,
    "visibility_timeout": 3600,  # nothing is held unacknowledged, so nothing is ever restored by age
    "socket_timeout": 10,  # without it a connection that died in silence blocks for ever
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,  # with the timeouts: a silent connection is noticed in about 20 s
    "priority_steps": [0],  # one list per queue: order, fairness and deadlines are decided in SQL
}

#: For whoever asks Redis on the side: waits less than a worker, and does not try again by itself.
PROMPT_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": 2,
    "socket_connect_timeout": 2,
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
}

#: That Redis is down, hangs, is full or read-only.
BROKER_ERRORS: Final = (OperationalError, RedisError, OSError)


def generate_queue(model: str) -> str:
    """Name of the queue that holds the tickets of `model`."""
    return f"generate.{model}"


def queue(name: str) -> Queue:
    """A queue as the app declares it. Pass this, not the name: models come and go, so no setting can list them."""
    return Queue(name, routing_key=name)  # type: ignore[no-untyped-call]


def queue_lengths(names: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each queue. Raises what kombu and redis raise; see `BROKER_ERRORS`."""
    url = get_settings().redis_url.get_secret_value()
    with app.connection_for_read(url, transport_options=PROMPT_OPTIONS, connect_timeout=2) as connection:
        channel = connection.default_channel
        return {name: int(channel._size(name)) for name in names}


def describe_args(task: str, args: Sequence[Any]) -> str:
    """The arguments as Flower shows them: `batch=batch_…`. They are ids and names only, never content."""
    return " ".join(f"{name}={value}" for name, value in zip(_ARG_NAMES.get(task, ()), args, strict=False))


def _configuration() -> dict[str, Any]:
    settings = get_settings()
    return {
        "broker_url": settings.redis_url.get_secret_value(),
        "broker_use_ssl": tls_options(settings.redis_url.get_secret_value()),  # Flower's own connections
        "broker_transport_options": TRANSPORT_OPTIONS,
        "broker_connection_retry_on_startup": True,  # processes start in any order
        "broker_connection_max_retries": None,  # the default gives up after 100 tries and exits
        "broker_channel_error_retry": True,  # else a full or read-only Redis ends the worker
        "task_acks_late": False,  # the lease in SQL is the guard; late acknowledgement adds nothing but doubles
        "worker_disable_prefetch": True,  # else a worker hoards tickets that another group could use
        "worker_prefetch_multiplier": 1,
        "task_reject_on_worker_lost": False,  # else a task that kills its worker is redelivered without end
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # a task outlives its connection to Redis
        "task_ignore_result": True,  # outcomes are in SQL, and there is no second truth
        "result_backend": None,
        "task_serializer": "json",  # a message can't carry code
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": CONTROL_QUEUE,
        "task_queues": [queue(CONTROL_QUEUE)],
        "task_create_missing_queues": False,  # a mistyped queue is an error, not a queue that nobody reads
        "worker_send_task_events": True,  # Flower
        "task_send_sent_event": True,  # Flower: time in the queue
        "worker_hijack_root_logger": False,  # logging is set up by pipeline.telemetry.logs
        "worker_redirect_stdouts": False,
        "enable_utc": True,
        "beat_schedule": {
            # A message that was not taken until the next one is due is worth nothing: an outage piles up none.
            "sweep": {
                "task": SWEEP,
                "schedule": settings.sweep_seconds,
                "options": {"expires": settings.sweep_seconds, "retry": False},
            },
            "relay": {
                "task": RELAY,
                "schedule": settings.relay_seconds,
                "options": {"expires": max(1.0, settings.relay_seconds), "retry": False},
            },
            "draft": {
                "task": DRAFT,
                "schedule": crontab(minute=5),  # of every hour, UTC
                "options": {"expires": 3600, "retry": False},
            },
            "look_at_books": {
                "task": LOOK_AT_BOOKS,
                "schedule": crontab(hour=3, minute=15),  # of every day, UTC, after roll-ups were set right
                "options": {"expires": 3600, "retry": False},
            },
            "keep_up": {
                "task": KEEP_UP,
                "schedule": crontab(hour=2, minute=15),  # of every day, UTC
                "options": {"expires": 3600, "retry": False},
            },
        },
    }


class _Connection(Connection):
    """Kombu's, back soon after Redis is, and not undone by a message that is none."""

    def __init__(self, hostname: str | None = "localhost", *args: Any, **kwargs: Any) -> None:
        if hostname and "://" in hostname:  # else it is a copy of another connection
            kwargs["ssl"] = tls_options(hostname) or False
        super().__init__(hostname, *args, **kwargs)  # type: ignore[no-untyped-call]

    @cached_property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a worker connects again; any other ends it. The last ones are those of reading a message
        that is no JSON, or has not the shape of a task."""
        return (*super().connection_errors, ValueError, TypeError, KeyError, AttributeError)

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("interval_step", 0)  # else it tries every 2 s, then 4, and in the end every 30
        return super()._ensure_connection(*args, **kwargs)  # type: ignore[no-untyped-call]


class _AMQP(AMQP):  # type: ignore[misc]
    Connection = _Connection


app = Celery("ryzanstein", amqp=_AMQP, include=["pipeline.jobs.tasks"], set_as_current=True)
# Read when first needed, so that importing this module needs no settings.
app.add_defaults(_configuration)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _leave_logging_alone(**_: object) -> None:
    """That somebody listens to this signal keeps Celery from setting up logging."""


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _drop_a_recommendation(**_: object) -> None:
    """At every lost connection Celery warns of what the settings above decide on purpose."""
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
