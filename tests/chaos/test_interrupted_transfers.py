"""The gateway dies in the middle of an upload or a download: nothing is accepted by half, and nothing looks whole."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest
from batch_jobs import chat_line, read_lines, submit, wait_for_end
from harness import SHORT_LEASES
from stacks import RunningStack, wait_for

#: More than the sockets between client and gateway hold.
NUM_BYTES = 24 * 2**20


@pytest.fixture(scope="module")
def stack(stack_folder: Path, tiny_model: Path) -> Iterator[RunningStack]:
    fast = {**SHORT_LEASES, "RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "0"}
    stack = RunningStack(stack_folder / "transfers", tiny_model, ("--engine", "echo"), fast)
    try:
        stack.up()
        yield stack
    finally:
        stack.end()


def blobs(stack: RunningStack) -> set[str]:
    """Blobs under their own names; those that were never finished lie in another folder, and go with time."""
    folder = stack.data_dir / "blobs"
    return {path.name for path in folder.rglob("*") if path.is_file() and ".incoming" not in path.parts}


def is_connected(stack: RunningStack) -> bool:
    """Whether this process has a connection to the gateway."""
    port = urlsplit(stack.report["base_url"]).port
    return any(one.raddr and one.raddr.port == port for one in psutil.Process().net_connections("tcp"))


def kill_while_frozen(stack: RunningStack, pid: int) -> None:
    """SIGKILL a gateway that is frozen, and wait for the next one."""
    os.kill(pid, signal.SIGKILL)
    stack.wait_until_back({"gateway": pid})


def test_a_gateway_killed_in_the_middle_of_an_upload_has_accepted_nothing(stack: RunningStack) -> None:
    client, before = stack.client(), blobs(stack)
    url = urlsplit(stack.report["base_url"])
    assert url.hostname is not None
    with socket.create_connection((url.hostname, url.port or 80)) as half:
        half.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {client.api_key}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {NUM_BYTES}\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            '--x\r\nContent-Disposition: form-data; name="file"; filename="half.jsonl"\r\n\r\n'.encode()
        )
        half.sendall(b"\n" * (NUM_BYTES // 2))
        incoming = stack.data_dir / "blobs" / ".incoming"
        wait_for(lambda: any(path.stat().st_size for path in incoming.iterdir()), "a part of the upload on disk")
        stack.wait_until_back(stack.kill("gateway"))

    assert [file.filename for file in client.files.list()] == []
    assert blobs(stack) == before


def test_a_client_that_tries_again_uploads_the_whole_file_once(stack: RunningStack) -> None:
    client = stack.client().with_options(max_retries=10)
    gateway = stack.pid("gateway")
    assert gateway is not None
    os.kill(gateway, signal.SIGSTOP)  # so that it dies with a part of the body in hand
    content = os.urandom(NUM_BYTES)
    uploaded: list[str] = []

    def upload() -> None:
        uploaded.append(client.files.create(file=("whole.bin", io.BytesIO(content)), purpose="user_data").id)

    uploading = threading.Thread(target=upload)
    uploading.start()
    wait_for(lambda: is_connected(stack), "the client's connection")
    kill_while_frozen(stack, gateway)
    uploading.join(90)

    assert [file.id for file in client.files.list()] == uploaded
    assert client.files.content(uploaded[0]).read() == content


@pytest.fixture(scope="module")
def long_output(stack: RunningStack) -> str:
    """The output file of a batch, too long for the sockets to hold."""
    many = {"max_tokens": 32, "n": 16, "logprobs": True, "top_logprobs": 1}
    lines = [chat_line(f"r{number}", f"number {number}", **many) for number in range(160)]
    client = stack.client()
    batch = wait_for_end(client, submit(client, lines).id)
    assert batch.output_file_id is not None
    return batch.output_file_id


def test_a_download_that_is_cut_off_is_an_error_and_whole_the_next_time(stack: RunningStack, long_output: str) -> None:
    client = stack.client().with_options(max_retries=0)
    gateway = stack.pid("gateway")
    assert gateway is not None
    num_read = 0
    with client.files.with_streaming_response.content(long_output) as response:
        chunks = response.iter_bytes(2**16)
        num_read += len(next(chunks))
        os.kill(gateway, signal.SIGSTOP)
        kill_while_frozen(stack, gateway)
        with pytest.raises((httpx2.HTTPError, openai.APIConnectionError)):  # noqa: PT012  the sum is wanted too
            for chunk in chunks:
                num_read += len(chunk)

    whole = read_lines(client, long_output)
    assert [line["custom_id"] for line in whole] == [f"r{number}" for number in range(160)]
    assert num_read < len(client.files.content(long_output).read())
