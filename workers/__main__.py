"""`python -m workers MODEL`: a group, as a Celery worker on the queue of its model."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import typer

from models.config import ModelConfig
from models.errors import ModelError
from pipeline.celery import app, generate_queue, queue
from pipeline.checks.starting import check_at_start
from pipeline.errors import UserError
from pipeline.model_folder import resolve_model
from pipeline.settings import Settings, get_settings
from pipeline.stack.options import Device, Dtype, Quantize
from pipeline.stack.options import Engine as EngineKind
from pipeline.tables.session import get_engine
from pipeline.telemetry.logs import configure_logging
from pipeline.telemetry.metrics.targets import announce
from pipeline.telemetry.tracing import configure_tracing
from pipeline.tokenization import Tokenizer
from pipeline.worker_process import run_worker
from workers.backends.echo import EchoEngine
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import Engine
from workers.bootstep import group_step
from workers.fleet import GroupIdentity
from workers.group import Group
from workers.hardware import describe_hardware
from workers.health_server import HealthServer
from workers.ticket_pool import ticket_pool


def main(
    model: str = typer.Argument(help="Model folder in the Hugging Face layout, or its name on the hub."),
    tp: int = typer.Option(1, min=1, help="Ranks: tensor parallelism."),
    device: Device = typer.Option(Device.CPU, help="Where the ranks run."),
    dtype: Dtype = typer.Option(Dtype.AUTO, help="Type of the weights while they run."),
    quantize: Quantize = typer.Option(Quantize.NONE, help="Weights in 8 bits: about twice as fast on a CPU."),
    engine: EngineKind = typer.Option(EngineKind.NATIVE, help="`echo` repeats the prompt."),
    name: str = typer.Option("group-0", help="Name of the group, unique on its machine."),
    model_name: str | None = typer.Option(None, help="What requests call the model."),
) -> None:
    """Load a model, and answer the requests of its slices until SIGTERM."""
    try:
        settings = get_settings()
        configure_logging(name)
        configure_tracing(name, settings)
        folder = resolve_model(model)
        health = HealthServer(settings.worker_health_host, settings.worker_health_port)
        identity = GroupIdentity(
            id=f"{name}@{socket.gethostname()}",
            model=model_name or _served_name(model, folder),
            model_path=str(folder),
            context_length=_context_length(engine, folder),
            pid=os.getpid(),
            info={
                "engine": engine.value,
                "tp": tp,
                "device": device.value,
                "dtype": dtype.value,
                "quantize": quantize.value,
                "health_port": health.port,
                **describe_hardware(device.value, tp),
            },
        )
        group = Group(
            _make_engine(engine, folder, tp, device, dtype, quantize, settings),
            identity,
            settings,
            get_engine(),
            on_failure=lambda: os._exit(1),
        )
        check_at_start()
    except (UserError, ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 — for a person at a terminal
        raise SystemExit(1) from None
    health.start(group.readiness, group.metrics)
    announce(settings, name, "group", settings.worker_health_host, health.port)
    _work(group, identity, settings)


def _served_name(model: str, folder: Path) -> str:
    """The name of a local folder, or the name on the hub as it was given."""
    return folder.name if Path(model).expanduser().is_dir() else model


def _context_length(kind: EngineKind, folder: Path) -> int:
    """In tokens. Scaled rotary embeddings stretch it, which a tokenizer does not know of; an echo needs no network."""
    if kind is EngineKind.ECHO:
        return Tokenizer.load(folder).context_length
    return ModelConfig.from_pretrained(folder).context_length


def _make_engine(
    kind: EngineKind, folder: Path, tp: int, device: Device, dtype: Dtype, quantize: Quantize, settings: Settings
) -> Engine:
    if kind is EngineKind.ECHO:
        return EchoEngine(folder, settings.echo_tokens_per_second)
    options = EngineOptions(
        model_path=str(folder),
        tp=tp,
        device=device.value,
        dtype=dtype.value,
        quantize=quantize.value,
        kv_cache_tokens=settings.kv_cache_tokens,
        max_num_sequences=settings.max_num_sequences,
        step_tokens=settings.step_tokens,
        step_seconds=settings.step_seconds,
    )
    return NativeEngine(options)


def _work(group: Group, identity: GroupIdentity, settings: Settings) -> NoReturn:
    import workers.tasks  # noqa: F401 — registers the task

    app.steps["worker"].add(group_step(group))
    tickets = queue(generate_queue(identity.model))
    app.conf.task_queues = [tickets]
    worker = app.Worker(
        hostname=identity.id,
        queues=[tickets.name],
        pool=ticket_pool(group),
        concurrency=settings.group_slices,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
    )
    run_worker(worker)


if __name__ == "__main__":
    typer.run(main)
