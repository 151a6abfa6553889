"""The gateway as a process."""

from __future__ import annotations

import uvicorn

from pipeline.checks.starting import check_at_start
from pipeline.gateway.app import create_app
from pipeline.telemetry.logs import configure_logging

#: Answers that are being sent when the process is asked to end are given this long; downloads are what takes longer.
_GRACEFUL_SECONDS = 20


def run_gateway(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish what has begun. One process: start more of them for more cores."""
    configure_logging("gateway")
    check_at_start()
    uvicorn.run(
        create_app(),
        host=host,
        port=port,
        log_config=None,  # ours stays
        access_log=False,  # ours has no query strings
        server_header=False,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
