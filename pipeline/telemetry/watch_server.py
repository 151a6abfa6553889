"""HTTP for whoever watches a process, Prometheus or a probe; in threads of its own, whatever the process does."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

#: A client that sends its request more slowly is not waited for, in seconds.
_CLIENT_SECONDS: Final = 5.0


class WatchServer(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without asking the name service what this address is called, which may take its time."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """In the log, as everything else is; one who did not wait for the answer is no news."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("whoever watches got no answer", exc_info=error)


class WatchHandler(BaseHTTPRequestHandler):
    """Says nothing of the program's or Python's version, and logs no request: one every few seconds is no news."""

    timeout = _CLIENT_SECONDS
    server_version = "ryzanstein"
    sys_version = ""

    def send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
