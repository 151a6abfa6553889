"""`/metrics` on a port of its own, so that the numbers of all tenants are never at a public address by mistake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry

from pipeline.errors import UserError
from pipeline.telemetry.metrics.registry import CONTENT_TYPE, render
from pipeline.telemetry.watch_server import WatchHandler, WatchServer

_NOTHING: Final[Mapping[str, Callable[[], bytes | None]]] = {}


class MetricsServer:
    """Answers in threads of its own, whatever the process is busy with. Asks for no key: see `metrics_host`."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        setting: str,
        others: Mapping[str, Callable[[], bytes | None]] = _NOTHING,
    ) -> None:
        """Port 0 takes any free one. Raises UserError, which names the setting, if the port is taken.

        `others` are pages that come from elsewhere, by path; one that gives None can't be had now.
        """
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"Can't listen on {host}:{port} for metrics ({error.strerror}). Set {setting} to a free port; 0 takes "
                "any."
            ) from None
        self._server.registry, self._server.others = registry, others
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(WatchServer):
    registry: CollectorRegistry
    others: Mapping[str, Callable[[], bytes | None]]


class _Handler(WatchHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(200, render(self.server.registry))
        elif self.path in self.server.others:
            page = self.server.others[self.path]()
            self._answer(502, b"It does not answer.\n") if page is None else self._answer(200, page)
        else:
            self._answer(404, b"Ask for /metrics.\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send(status, CONTENT_TYPE, body)
