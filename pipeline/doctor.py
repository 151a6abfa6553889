"""Looks at everything that the service stands on, and says what to do about what is wrong."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.checks.disk import check_disk
from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.checks.postgres import check_postgres
from pipeline.checks.redis_server import check_redis
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.http_probe import http_status
from pipeline.model_folder import resolve_model
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.storage import check_writable
from pipeline.tables import Group, GroupState, ServedModel
from pipeline.tables.migrating import describe_lack, revisions
from pipeline.tables.session import connection, get_engine
from pipeline.tokenization import Tokenizer

_PACKAGES = ("torch", "celery", "kombu", "redis", "sqlalchemy", "psycopg", "fastapi", "openai", "flower")
_TORCH_SECONDS = 120.0
#: torch is not for this process to import; another one says what it finds.
_ASK_TORCH = (
    "import json, torch; n = torch.cuda.device_count();"
    "print(json.dumps([torch.__version__, torch.get_num_threads(), [torch.cuda.get_device_name(i) for i in range(n)]]))"
)
_ASK_KERNELS = "from models.kernels.cpu.library import isa; print(isa() or '')"


def examine(model: str | None = None) -> Iterator[Finding]:
    """Every finding, as soon as there is one; those that need the settings are left out where they are wrong."""
    yield _versions()
    try:
        settings = get_settings()
    except ConfigurationError as error:
        yield failed("settings", str(error), "Correct the variable; docs/settings.md lists all of them.")
        return
    yield ok("settings", f"read from {PREFIX}… variables")
    checks: list[Callable[[Settings], Iterator[Finding]]] = [_postgresql, _redis, _storage, _gateway, _flower]
    for check in checks:
        yield from check(settings)
    if model is not None:
        yield _model(model)
    yield _torch()
    yield _kernels()


def _versions() -> Finding:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    detail = f"ryzanstein {version('ryzanstein')} on Python {platform.python_version()}; {versions}"
    return ok("versions", detail)


def _postgresql(settings: Settings) -> Iterator[Finding]:
    try:
        with connection() as conn:
            server = conn.execute(text("SHOW server_version")).scalar_one()
            found = [*check_postgres(conn)]
        current, wanted = revisions(settings.database_url.get_secret_value())
    except SQLAlchemyError as error:
        url = get_engine().url
        yield failed(
            "postgresql",
            f"{url.host}:{url.port} does not let us in ({_reason(error)})",
            f"Start it, and check host, user, password and certificates in {PREFIX}DATABASE_URL.",
        )
        return
    yield from found
    if (lack := describe_lack(current, wanted)) is not None:
        yield failed("postgresql", lack, "Run `ryzanstein migrate`.")
        return
    yield ok("postgresql", f"{server}, schema {current}")
    yield from _models_and_groups()


def _reason(error: SQLAlchemyError) -> str:
    """The last line that is no question back; where a host has several addresses, there is one for each."""
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines else type(error).__name__


def _models_and_groups() -> Iterator[Finding]:
    with connection() as conn:
        models = conn.execute(select(ServedModel.name, ServedModel.path).order_by(ServedModel.name)).all()
        ready = conn.execute(select(func.count()).where(Group.state == GroupState.READY)).scalar_one()
    for name, path in models:
        finding = _model(path)
        yield Finding(subject=f"model {name}", verdict=finding.verdict, detail=finding.detail, advice=finding.advice)
    if ready:
        yield ok("groups", f"{ready} ready")
    else:
        yield warning("groups", "none is ready", "Start one with `ryzanstein worker MODEL`; batches wait until then.")


def _redis(settings: Settings) -> Iterator[Finding]:
    return check_redis()


def _storage(settings: Settings) -> Iterator[Finding]:
    try:
        check_writable()
    except PipelineError as error:
        yield failed("storage", str(error), f"Correct that, or set {PREFIX}STORAGE_URL.")
        return
    yield ok("storage", f"{settings.storage_url} is writable")
    yield from check_disk(settings)


def _gateway(settings: Settings) -> Iterator[Finding]:
    url = settings.base_url.rstrip("/").removesuffix("/v1") + "/readyz"
    if http_status(url) == 200:
        yield ok("gateway", f"{settings.base_url} is ready")
    else:
        yield warning("gateway", f"{url} does not answer", f"Start `ryzanstein gateway`, or set {PREFIX}BASE_URL.")


def _flower(settings: Settings) -> Iterator[Finding]:
    url = f"http://{settings.flower_host}:{settings.flower_port}/healthcheck"
    if http_status(url) == 200:
        yield ok("flower", f"{url} answers")
    else:
        yield warning("flower", f"{url} does not answer", "Start `ryzanstein flower` to watch the queues.")


def _model(name_or_path: str) -> Finding:
    subject = f"model {name_or_path}"
    try:
        folder = resolve_model(name_or_path)
        json.loads((folder / "config.json").read_bytes())
        tokenizer = Tokenizer.load(folder)
    except (PipelineError, OSError, ValueError) as error:
        return failed(subject, str(error), "Give the folder of a model that this machine can read.")
    if not any(folder.glob("*.safetensors")):
        return warning(subject, f"{folder} has no .safetensors", "Only the echo engine can serve it.")
    return ok(subject, f"{folder}, {tokenizer.vocab_size} token ids")


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
