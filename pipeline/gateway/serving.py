"""The gateway as a process."""

from __future__ import annotations

import contextlib
import sys
from types import FrameType

import uvicorn

from pipeline.checks.starting import check_at_start
from pipeline.gateway.app import create_app
from pipeline.settings import PREFIX, get_settings
from pipeline.telemetry.logs import configure_logging
from pipeline.telemetry.metrics.server import MetricsServer
from pipeline.telemetry.metrics.targets import announce
from pipeline.telemetry.tracing import configure_tracing

#: Answers that are being sent when the process is asked to end are given this long; downloads are what takes longer.
_GRACEFUL_SECONDS = 20
#: Exit code where it could not listen, as uvicorn has it.
_STARTUP_FAILURE = 3


class _Server(uvicorn.Server):
    """Ends the streams of events as soon as it is asked to end: they would go on for as long as their batches."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.progress.close()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def run_gateway(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish what has begun. One process: start more of them for more cores."""
    configure_logging("gateway")
    configure_tracing("gateway", get_settings())
    check_at_start()
    settings, app = get_settings(), create_app()
    server = MetricsServer(
        settings.metrics_host,
        settings.gateway_metrics_port,
        app.state.metrics.registry,
        PREFIX + "GATEWAY_METRICS_PORT",
    )
    announce(settings, "gateway", "gateway", settings.metrics_host, server.port)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # ours stays
        access_log=False,  # ours has no query strings
        server_header=False,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    gateway = _Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # raised again at the end, by whoever ended it from a terminal
        gateway.run()
    if not gateway.started:
        sys.exit(_STARTUP_FAILURE)
