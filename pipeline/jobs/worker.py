"""The control worker: a Celery worker on the queue `control`, with beat as one of its threads."""

from __future__ import annotations

import socket
from typing import Final, NoReturn

from pipeline.celery import CONTROL_QUEUE, app
from pipeline.checks.starting import check_at_start
from pipeline.jobs.beat import Beat
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.tables.session import get_engine
from pipeline.telemetry.flower_metrics import PATH, read_flower_metrics
from pipeline.telemetry.logs import configure_logging
from pipeline.telemetry.metrics.registry import make_registry
from pipeline.telemetry.metrics.server import MetricsServer
from pipeline.telemetry.metrics.service.metrics import ServiceMetrics
from pipeline.telemetry.metrics.targets import announce
from pipeline.telemetry.metrics.tasks import TASKS
from pipeline.telemetry.tracing import configure_tracing
from pipeline.worker_pool import TaskPool
from pipeline.worker_process import run_worker

#: More than the batches prepared at once, so that sweeps and the closing of batches never wait behind those.
_NUM_THREADS: Final = 6


def run_control_worker() -> NoReturn:
    """Work until SIGTERM, finish the tasks at hand, and leave the process. The node's name is `control@HOST`."""
    configure_logging("control")
    configure_tracing("control", get_settings())
    check_at_start()
    _show_metrics(get_settings())
    app.steps["worker"].add(Beat)
    worker = app.Worker(
        hostname=f"control@{socket.gethostname()}",
        queues=[CONTROL_QUEUE],
        pool=TaskPool,
        concurrency=_NUM_THREADS,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
    )
    run_worker(worker)


def _show_metrics(settings: Settings) -> None:
    """Until the process ends. Raises UserError if the port is taken."""
    registry = make_registry(get_engine())
    for collector in (TASKS, ServiceMetrics(settings)):
        registry.register(collector)
    server = MetricsServer(
        settings.metrics_host,
        settings.control_metrics_port,
        registry,
        PREFIX + "CONTROL_METRICS_PORT",
        others={PATH: lambda: read_flower_metrics(settings)},
    )
    announce(settings, "control", "control", settings.metrics_host, server.port)
