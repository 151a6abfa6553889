"""`/healthz`, `/readyz` and `/metrics` of a group, for whoever watches over it: compose, Prometheus, a person."""

from __future__ import annotations

import json
import threading

from prometheus_client import CollectorRegistry

from pipeline.errors import UserError
from pipeline.settings import PREFIX
from pipeline.telemetry.metrics.registry import CONTENT_TYPE, render
from pipeline.telemetry.watch_server import WatchHandler, WatchServer
from workers.readiness import Readiness


class HealthServer:
    """Answers with `{"status": …}`: 200 where all is well, 503 with `"reasons"` otherwise. Asks for no key."""

    def __init__(self, host: str, port: int) -> None:
        """Port 0 takes any free one. Raises UserError if the port is taken."""
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"Can't listen on {host}:{port} for health checks ({error.strerror}). Set {PREFIX}WORKER_HEALTH_PORT "
                "to a free port; 0 takes any."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self, readiness: Readiness, metrics: CollectorRegistry) -> None:
        """Answer from now on."""
        self._server.readiness, self._server.metrics = readiness, metrics
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(WatchServer):
    readiness: Readiness
    metrics: CollectorRegistry


class _Handler(WatchHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            if reasons := self.server.readiness.reasons():
                self._answer(503, {"status": "not ready", "reasons": reasons})
            else:
                self._answer(200, {"status": "ready"})
        elif self.path == "/metrics":
            self.send(200, CONTENT_TYPE, render(self.server.metrics))
        else:
            self._answer(404, {"status": "unknown address", "reasons": ["ask for /healthz, /readyz or /metrics"]})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        self.send(status, "application/json", json.dumps(content).encode())
