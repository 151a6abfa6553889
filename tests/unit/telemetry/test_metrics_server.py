from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from running_groups import wait_for
from scraping import scrape
from structlog.testing import capture_logs

from pipeline.telemetry.metrics.server import MetricsServer


class Held(Collector):
    """Answers when it may, or breaks."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.is_asked = threading.Event()
        self.error: Exception | None = None

    def collect(self) -> Iterator[Metric]:
        self.is_asked.set()
        assert self.may_go_on.wait(20)
        if self.error is not None:
            raise self.error
        yield from ()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def server(held: Held) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    registry.register(held)
    server = MetricsServer("127.0.0.1", 0, registry, "A_PORT")
    yield server
    server.stop()


def ask(server: MetricsServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    return client


def answering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_who_does_not_wait_for_the_answer_is_no_news(
    server: MetricsServer, held: Held, capfd: pytest.CaptureFixture[str]
) -> None:
    with capture_logs() as logged:
        client = ask(server)
        assert held.is_asked.wait(20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # at once, which resets it
        held.may_go_on.set()
        wait_for(lambda: not answering())
    assert (capfd.readouterr().err, logged) == ("", [])
    assert scrape(f"http://127.0.0.1:{server.port}/metrics").samples == {}, "it goes on"


def test_what_breaks_is_a_line_of_the_log(server: MetricsServer, held: Held, capfd: pytest.CaptureFixture[str]) -> None:
    held.error = ValueError("it broke")
    held.may_go_on.set()
    with capture_logs() as logged, ask(server) as client:
        assert client.recv(1) == b""
        wait_for(lambda: not answering())
    assert [(one["log_level"], str(one["exc_info"])) for one in logged] == [("error", "it broke")]
    assert capfd.readouterr().err == ""
