"""What the tests of the gateway share: someone with a key, a served gateway, and the shape of an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai
import psutil
import uvicorn
from fastapi import FastAPI

from pipeline.embedded import EmbeddedPostgres
from pipeline.gateway import create_app
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.projects import create_project, list_projects
from pipeline.tenancy.tenants import ensure_tenant


@dataclass(frozen=True)
class Tenant:
    """Someone with a key, and the means to use it."""

    id: str
    key: str
    client: openai.OpenAI
    #: For what the client would not send, or hides.
    http: httpx2.Client


@contextmanager
def serve(app: FastAPI | None = None) -> Iterator[str]:
    """A gateway with the present settings; gives its address."""
    config = uvicorn.Config(app or create_app(), host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        limit = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            assert time.monotonic() < limit, "the gateway did not start in time"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def new_tenant(
    address: str,
    name: str,
    project: str | None = None,
    scopes: Sequence[str] | None = None,
    *,
    is_operator: bool = False,
) -> Tenant:
    """Someone with a new key: of the whole tenant, or of this project of it."""
    with transaction() as session:
        tenant = ensure_tenant(session, name)
        projects = {row.name: row.id for row in list_projects(session, tenant.id)}
        if project is not None and project not in projects:
            projects[project] = create_project(session, tenant.id, project).id
        project_id = None if project is None else projects[project]
        _, key = create_key(session, tenant.id, "tests", project_id=project_id, scopes=scopes, is_operator=is_operator)
    return Tenant(
        id=tenant.id,
        key=key,
        client=openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0),
        http=httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60),
    )


ERROR_KEYS = {"message", "type", "param", "code"}


def error_of(response: httpx2.Response) -> dict[str, str | None]:
    """The error of an answer that is none; checks what all of them have in common."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == ERROR_KEYS
    assert body["error"]["message"]
    assert body["error"]["type"]
    error: dict[str, str | None] = body["error"]
    return error


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def postgres_processes(server: EmbeddedPostgres) -> list[int]:
    assert server.process is not None
    parent = psutil.Process(server.process.pid)
    return [parent.pid, *(child.pid for child in parent.children(recursive=True))]
