from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline import http_probe
from pipeline.http_probe import http_status, proxy_variable
from pipeline.processes import free_port
from pipeline.settings import Settings
from pipeline.telemetry.flower_metrics import read_flower_metrics


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_status_is_told_whatever_it_is(server: str) -> None:
    assert http_status(f"{server}/well") == 200
    assert http_status(f"{server}/ill") == 503


def test_a_proxy_is_not_asked_about_this_machine(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")

    assert http_status(f"{server}/well") == 200


def test_no_answer_is_none() -> None:
    assert http_status(f"http://127.0.0.1:{free_port()}/") is None
    assert http_status("gibberish") is None


def test_a_proxy_that_answers_byte_by_byte_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def drip() -> None:
            client, _ = proxy.accept()
            with client:
                client.recv(1000)
                for _ in range(100):
                    client.sendall(b"H")
                    if is_over.wait(0.1):
                        return
            is_over.set()

        dripping = threading.Thread(target=drip)
        dripping.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setattr(http_probe, "_SECONDS", 0.5)
        assert http_status("http://gateway.invalid/readyz") is None
        assert not is_over.is_set(), "its last byte was waited for"
        is_over.set()
        dripping.join()


def test_the_proxy_that_is_asked_is_known_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "inside.invalid")
    assert proxy_variable("http://gateway.invalid/readyz") == "http_proxy"
    assert http_status("http://gateway.invalid/readyz") is None
    for url in ("http://127.0.0.1/", "http://inside.invalid/", "https://gateway.invalid/", "gibberish", "http://[::1"):
        assert proxy_variable(url) is None
    assert http_status("http://[::1") is None


def test_what_speaks_something_else_than_http_gives_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            for _ in range(2):
                client, _ = other.accept()
                with client:
                    client.recv(1000)
                    client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = other.getsockname()[1]
        assert http_status(f"http://127.0.0.1:{port}/readyz") is None
        assert read_flower_metrics(Settings(flower_port=port)) is None
