"""`/healthz`, `/readyz` and `/metrics` of a group, for whoever watches over it: compose, Prometheus, a person."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from prometheus_client import CollectorRegistry

from pipeline.errors import UserError
from pipeline.settings import PREFIX
from pipeline.telemetry.metrics.registry import CONTENT_TYPE, render
from workers.readiness import Readiness

#: A client that sends its request more slowly is not waited for, in seconds.
_CLIENT_SECONDS: Final = 5.0


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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    readiness: Readiness
    metrics: CollectorRegistry

    def server_bind(self) -> None:
        """Without asking the name service what this address is called, which may take its time."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS
    server_version = "ryzanstein"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            if reasons := self.server.readiness.reasons():
                self._answer(503, {"status": "not ready", "reasons": reasons})
            else:
                self._answer(200, {"status": "ready"})
        elif self.path == "/metrics":
            self._send(200, CONTENT_TYPE, render(self.server.metrics))
        else:
            self._answer(404, {"status": "unknown address", "reasons": ["ask for /healthz, /readyz or /metrics"]})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a probe every few seconds is no news."""
