"""The gateway as a process."""

from __future__ import annotations

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
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,  # ours stays
        access_log=False,  # ours has no query strings
        server_header=False,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
