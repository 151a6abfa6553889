"""Looks at everything that the service stands on, and says what to do about what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Row, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.checks.control import check_control
from pipeline.checks.disk import check_disk
from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.checks.host import (
    check_large_pages,
    check_open_files,
    check_port,
    check_shared_memory,
    check_signing_key,
    check_webhooks,
)
from pipeline.checks.model_files import check_model
from pipeline.checks.packages import check_packages
from pipeline.checks.postgres import check_postgres
from pipeline.checks.redis_server import check_redis
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.http_probe import http_status, proxy_variable
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.storage import check_writable
from pipeline.tables import GroupState, ServedModel
from pipeline.tables.migrating import describe_lack, revisions
from pipeline.tables.session import connection, get_engine

#: What our servers answer with.
_READY: Final = 200
_NOT_READY: Final = 503
#: Flower, asked at an address that is not loopback.
_ASKS_FOR_PASSWORD: Final = 401

_TORCH_SECONDS = 120.0
#: torch is not for this process to import; another one says what it finds.
_ASK_TORCH = (
    "import json, torch; n = torch.cuda.device_count();"
    "print(json.dumps([torch.__version__, torch.get_num_threads(), [torch.cuda.get_device_name(i) for i in range(n)]]))"
)
_ASK_KERNELS = "from models.kernels.cpu.library import isa; print(isa() or '')"


_GROUPS: Final = text("""
    SELECT id, state, reason, extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS silent_seconds,
           state NOT IN ('stopped', 'starting')
           AND heartbeat_at < clock_timestamp() - make_interval(secs => :lease_seconds) AS is_silent
    FROM groups WHERE state <> 'stopped' ORDER BY id
""")


def examine(model: str | None = None) -> Iterator[Finding]:
    """Every finding, as soon as there is one; those that need the settings are left out where they are wrong."""
    yield from check_packages()
    try:
        settings = get_settings()
    except ConfigurationError as error:
        yield failed("settings", str(error), "Correct the variables; docs/settings.md lists all of them.")
        return
    yield ok("settings", f"read from {PREFIX}… variables")
    checks: list[Callable[[Settings], Iterator[Finding]]] = [_postgresql, _redis, _storage, _gateway, _flower]
    for check in [*checks, check_signing_key, check_webhooks]:
        yield from check(settings)
    yield from check_open_files()
    yield from check_shared_memory()
    yield from check_large_pages()
    if model is not None:
        yield from check_model(f"model {model}", model)
    yield _torch()
    yield _kernels()


def _postgresql(settings: Settings) -> Iterator[Finding]:
    """Whenever it is lost, between two of the questions too, that is a finding, and what is known by then another."""
    try:
        with connection() as conn:
            server = conn.execute(text("SHOW server_version")).scalar_one()
            found = [*check_postgres(conn)]
        current, wanted = revisions(settings.database_url.get_secret_value())
        yield from found
        if (lack := describe_lack(current, wanted)) is not None:
            yield failed("postgresql", lack, "Run `ryzanstein migrate`.")
            return
        with connection() as conn:
            models = conn.execute(select(ServedModel.name, ServedModel.path).order_by(ServedModel.name)).all()
            groups = conn.execute(_GROUPS, {"lease_seconds": settings.lease_seconds}).all()
    except SQLAlchemyError as error:
        url = get_engine().url
        yield failed(
            "postgresql",
            f"{url.host}:{url.port} does not let us in ({_reason(error)})",
            f"Start it, and check host, user, password and certificates in {PREFIX}DATABASE_URL.",
        )
        return
    yield ok("postgresql", f"{server}, schema {current}")
    for name, path in models:
        yield from check_model(f"model {name}", path)
    yield from _groups(groups)


def _reason(error: SQLAlchemyError) -> str:
    """The last line that is no question back; where a host has several addresses, there is one for each."""
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines else type(error).__name__


def _groups(groups: Sequence[Row[Any]]) -> Iterator[Finding]:
    for group in groups:
        if group.is_silent:
            advice = "Look into its log: it is stuck, or its machine is gone. What it held goes on elsewhere."
            yield warning(f"group {group.id}", f"has said nothing for {group.silent_seconds:.0f} s", advice)
        elif group.state == GroupState.DEGRADED:
            advice = "Look into its log, then start it again: it claims nothing until then."
            yield warning(f"group {group.id}", f"is degraded: {group.reason}", advice)
    num_ready = sum(group.state == GroupState.READY and not group.is_silent for group in groups)
    if num_ready:
        yield ok("groups", f"{num_ready} ready")
    else:
        yield warning("groups", "none is ready", "Start one with `ryzanstein worker MODEL`; batches wait until then.")


def _redis(settings: Settings) -> Iterator[Finding]:
    yield from check_redis()
    yield from check_control()


def _storage(settings: Settings) -> Iterator[Finding]:
    try:
        check_writable()
    except PipelineError as error:
        yield failed("storage", str(error), f"Correct that, or set {PREFIX}STORAGE_URL.")
        return
    yield ok("storage", f"{settings.storage_url} can be written and read")
    yield from check_disk(settings)


def _gateway(settings: Settings) -> Iterator[Finding]:
    url = settings.base_url.rstrip("/").removesuffix("/v1") + "/readyz"
    status, variable = http_status(url), proxy_variable(url)
    through = "" if variable is None else f" through the proxy in {variable}"
    if status == _READY:
        yield ok("gateway", f"{settings.base_url} is ready")
    elif status == _NOT_READY:
        yield warning("gateway", f"{settings.base_url} is not ready{through}", f"`curl {url}` says why.")
    else:
        advice = f"Start `ryzanstein gateway`, or set {PREFIX}BASE_URL."
        if through:
            advice += " Where it is to be asked without the proxy, name its host in no_proxy."
        yield warning("gateway", f"{url} does not answer{through}", advice)
        yield from check_port("gateway port", settings.gateway_host, settings.gateway_port, "GATEWAY_PORT")


def _flower(settings: Settings) -> Iterator[Finding]:
    url = f"http://{settings.flower_host}:{settings.flower_port}/healthcheck"
    if http_status(url) in (_READY, _ASKS_FOR_PASSWORD):
        yield ok("flower", f"{url} answers")
    else:
        yield warning("flower", f"{url} does not answer", "Start `ryzanstein flower` to watch the queues.")
        yield from check_port("flower port", settings.flower_host, settings.flower_port, "FLOWER_PORT")


def _torch() -> Finding:
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        return failed("torch", last, "Install torch as constraints.txt pins it.")
    except subprocess.TimeoutExpired:
        return failed("torch", f"did not load within {_TORCH_SECONDS:g} s", "Check the driver of the GPU.")
    torch_version, threads, gpus = json.loads(asked.stdout)
    if not gpus and any(Path("/dev").glob("nvidia[0-9]*")):
        return warning("torch", f"{torch_version} does not see the GPU", "Install a build of torch with CUDA.")
    where = ", ".join(gpus) if gpus else f"no GPU, {threads} CPU threads"
    return ok("torch", f"{torch_version}, {where}")


def _kernels() -> Finding:
    """Those of the CPU, where the package that has them is installed and was compiled."""
    subject = "CPU kernels"
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_KERNELS],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return warning(subject, "do not load", "Install the package again; torch's own operations are used meanwhile.")
    if not (isa := asked.stdout.strip()):
        advice = "Install a C++ compiler, then the package again; torch's own operations are several times slower."
        return warning(subject, "were not built", advice)
    return ok(subject, f"built, for {isa}")
