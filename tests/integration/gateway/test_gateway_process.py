"""The gateway as the process that `ryzanstein gateway` runs: its memory, its log and its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from running_gateways import Tenant, new_tenant, wait_for
from sqlalchemy import Engine

from pipeline.processes import free_port, spawn, stop

MEBIBYTE = 1024**2


@dataclass(frozen=True)
class Gateway:
    process: subprocess.Popen[bytes]
    tenant: Tenant
    log_path: Path

    def peak_memory(self) -> int:
        """Largest resident size so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def gateway(
    database: Engine, redis_url: str, set_before_start: Callable[[str, object], None], tmp_path: Path
) -> Iterator[Gateway]:
    set_before_start("LOG_FORMAT", "json")
    port, log_path = free_port(), tmp_path / "gateway.log"
    command = [sys.executable, "-m", "pipeline.cli", "gateway", "--port", str(port)]
    process = spawn(command, env=os.environ, log_path=log_path)
    tenant = new_tenant(f"http://127.0.0.1:{port}", "acme")

    def is_ready() -> bool:
        assert process.poll() is None, log_path.read_text()
        try:
            return tenant.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_for(is_ready, seconds=60)
        yield Gateway(process, tenant, log_path)
    finally:
        stop(process, timeout=30)
        tenant.client.close()
        tenant.http.close()


def test_a_file_of_200_mib_is_held_on_disk_and_not_in_memory(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = b'{"custom_id": "' + b"x" * 985 + b'"}\n'
    with path.open("wb") as file:
        for _ in range(200):
            file.write((line * 1100)[: MEBIBYTE - 1] + b"\n")

    with path.open("rb") as content:
        uploaded = gateway.tenant.client.files.create(file=content, purpose="batch")

    assert uploaded.bytes == 200 * MEBIBYTE
    with gateway.tenant.client.files.with_streaming_response.content(uploaded.id) as response:
        assert sum(len(chunk) for chunk in response.iter_bytes()) == uploaded.bytes
    assert gateway.peak_memory() < 300 * MEBIBYTE


def test_what_is_over_the_limit_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    address = gateway.tenant.http.base_url
    connection = http.client.HTTPConnection(address.host, address.port or 0, timeout=30)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {gateway.tenant.key}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()

    response = connection.getresponse()

    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "file_too_large"
    connection.close()


def test_the_process_ends_in_order_and_has_logged_no_secret(gateway: Gateway) -> None:
    gateway.tenant.http.get("/v1/files", params={"purpose": "mine"}, headers={"x-request-id": "mine-1"})
    file = gateway.tenant.client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    batch = gateway.tenant.client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    with gateway.tenant.http.stream("GET", f"/v1/batches/{batch.id}/events") as stream:
        lines_of_stream = stream.iter_lines()
        assert next(lines_of_stream) == "retry: 2000"

        gateway.process.send_signal(signal.SIGTERM)

        assert f'"batch_id":"{batch.id}"' in "".join(lines_of_stream), "it ends as it should"

    assert gateway.process.wait(30) in (0, -signal.SIGTERM)
    log = gateway.log_path.read_text()
    assert "graceful" not in log, "streams are waited for"
    assert gateway.tenant.key.rsplit("_", 1)[1] not in log
    assert "purpose" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    [request] = [line for line in lines if line.get("request_id") == "mine-1"]
    assert (request["event"], request["process"], request["status"]) == ("request", "gateway", 200)
