"""The services of a stack: how each is started, and when it is ready."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pipeline.http_probe import http_status
from pipeline.processes import spawn
from pipeline.stack.fleet import Fleet
from pipeline.stack.options import devices_of_group
from pipeline.stack.plan import StackPlan
from pipeline.stack.supervisor import Service
from pipeline.tables import GroupState

#: `-P`: a folder of the user's that happens to be called `workers` must not be taken for ours.
_PYTHON = (sys.executable, "-P", "-m")
_CLI = (*_PYTHON, "pipeline.cli")
#: In which order they end; PostgreSQL last, since everything else writes to it.
_SERVERS = ("postgres", "redis")


def servers(plan: StackPlan) -> list[Service]:
    """PostgreSQL and Redis. They may fail to start while orphans of a last run still end, so they try again."""
    return [
        Service(
            name="postgres",
            launch=plan.postgres.launch,
            is_ready=lambda _: plan.postgres.is_ready(),
            log_path=plan.postgres.log_path,
            first_tries=5,
            stop_signal=signal.SIGINT,  # fast shutdown: it does not wait for its clients
            stop_seconds=30,
            hurry_signal=signal.SIGINT,
        ),
        Service(
            name="redis",
            launch=plan.redis.launch,
            is_ready=lambda _: plan.redis.is_ready(),
            log_path=plan.redis.log_path,
            first_tries=2,
        ),
    ]


def applications(plan: StackPlan, fleet: Fleet) -> list[Service]:
    """Everything else; they need the servers, and a migrated database."""
    control = f"control@{socket.gethostname()}"
    groups = [_group(plan, fleet, index) for index in range(plan.options.groups)]
    return [
        _application(plan, "gateway", [*_CLI, "gateway"], lambda _: http_status(f"{plan.gateway_url}/readyz") == 200),
        _application(plan, "control", [*_CLI, "control"], lambda _: _celery_answers(control)),
        *groups,
        _application(plan, "flower", [*_CLI, "flower"], lambda _: http_status(f"{plan.flower_url}/healthcheck") == 200),
    ]


def group_names(plan: StackPlan) -> list[str]:
    return [f"group-{index}" for index in range(plan.options.groups)]


def stop_stages(plan: StackPlan) -> Sequence[Sequence[str]]:
    """Groups first, so that they can record what they finish; PostgreSQL last, since everything writes to it."""
    return group_names(plan), ["control", "gateway", "flower"], ["redis"], ["postgres"]


def _group(plan: StackPlan, fleet: Fleet, index: int) -> Service:
    options, name = plan.options, f"group-{index}"
    argv = [*_PYTHON, "workers", str(options.model), "--model-name", options.model_name, "--name", name]
    argv += ["--tp", str(options.tp), "--device", options.device, "--dtype", options.dtype, "--engine", options.engine]
    argv += ["--quantize", options.quantize]
    environment = {}
    if devices := devices_of_group(options, index):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    drain = float(plan.settings()["RYZANSTEIN_DRAIN_SECONDS"])
    return _application(
        plan,
        name,
        argv,
        lambda pid: fleet.state_of(pid) in (GroupState.READY, GroupState.DRAINING, GroupState.DRAINED),
        environment=environment,
        ready_seconds=options.load_seconds,
        stop_seconds=drain + 15,
        hurry_signal=signal.SIGQUIT,
    )


def _application(
    plan: StackPlan,
    name: str,
    argv: Sequence[str],
    is_ready: Callable[[int], bool],
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    ready_seconds: float = 60.0,
    stop_seconds: float = 10.0,
    hurry_signal: signal.Signals = signal.SIGKILL,
) -> Service:
    log_path = plan.data_dir.log(name)

    def launch() -> subprocess.Popen[bytes]:
        # If the supervisor is killed there is nobody left to end them in order; a lease or two is all it costs.
        return spawn(
            argv,
            env={**plan.environment(), **environment},
            log_path=log_path,
            cwd=plan.data_dir.root,
            death_signal=signal.SIGKILL,
        )

    return Service(
        name=name,
        launch=launch,
        is_ready=is_ready,
        log_path=log_path,
        after=_SERVERS,
        ready_seconds=ready_seconds,
        stop_seconds=stop_seconds,
        hurry_signal=hurry_signal,
    )


def _celery_answers(node: str) -> bool:
    """Whether a Celery worker of this name answers through Redis."""
    from kombu.exceptions import OperationalError

    from pipeline.celery import app

    try:
        with app.connection_for_write() as connection:
            return bool(app.control.ping(destination=[node], timeout=1.0, connection=connection))
    except (OperationalError, OSError):
        return False
