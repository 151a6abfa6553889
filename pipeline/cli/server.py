"""The processes of the service, one command each: `gateway`, `control`, `worker`, `flower`, and `migrate`."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from pipeline.errors import UserError
from pipeline.stack.options import Device, Dtype, Engine, Quantize


def register(app: typer.Typer) -> None:
    app.command()(gateway)
    app.command()(control)
    app.command()(worker)
    app.command()(flower)
    app.command()(migrate)


def gateway(
    host: str | None = typer.Option(None, help="Address to listen on.  [default: setting GATEWAY_HOST]"),
    port: int | None = typer.Option(None, min=0, max=65535, help="Port to listen on.  [default: setting GATEWAY_PORT]"),
) -> None:
    """Serve the HTTP API."""
    from pipeline.gateway.serving import run_gateway
    from pipeline.settings import get_settings

    settings = get_settings()
    run_gateway(host or settings.gateway_host, settings.gateway_port if port is None else port)


def control() -> None:
    """Run the control worker: intake, planning, sweeping and finalizing."""
    from pipeline.jobs.worker import run_control_worker

    run_control_worker()


def worker(
    model: str = typer.Argument(help="Model folder in the Hugging Face layout, or its name on the hub."),
    tp: int = typer.Option(1, min=1, help="Ranks: tensor parallelism."),
    device: Device = typer.Option(Device.CPU, help="Where the ranks run."),
    dtype: Dtype = typer.Option(Dtype.AUTO, help="Type of the weights while they run."),
    quantize: Quantize = typer.Option(Quantize.NONE, help="Weights in 8 bits: about twice as fast on a CPU."),
    engine: Engine = typer.Option(Engine.NATIVE, help="`echo` repeats the prompt: for tests and benchmarks."),
    name: str = typer.Option("group-0", help="Name of the group, unique on its machine."),
    model_name: str | None = typer.Option(None, help="What requests call the model.  [default: the folder's name]"),
) -> None:
    """Run a group: load a model, and answer the requests of its slices."""
    if importlib.util.find_spec("workers") is None:
        raise UserError("This installation has no workers; install the whole package to run a group.")
    argv = [sys.executable, "-P", "-m", "workers", model, "--tp", str(tp), "--device", device, "--dtype", dtype]
    argv += ["--quantize", quantize, "--engine", engine, "--name", name]
    if model_name is not None:
        argv += ["--model-name", model_name]
    # A group is a program of its own, which imports what this one must not.
    os.execv(sys.executable, argv)  # noqa: S606


def flower() -> None:
    """Serve Flower, which shows workers, queues and tasks. It changes nothing, and asks for a password."""
    from pipeline.telemetry.flower import run_flower
    from pipeline.telemetry.logs import configure_logging

    configure_logging("flower")
    run_flower()


def migrate() -> None:
    """Bring the database to the schema of this version. Safe if two do it at once."""
    from sqlalchemy.exc import OperationalError

    from pipeline.settings import get_settings
    from pipeline.tables.migrating import migrate as run_migrations
    from pipeline.tables.migrating import revisions

    url = get_settings().database_url.get_secret_value()
    try:
        before, _ = revisions(url)
        run_migrations(url)
        after, _ = revisions(url)
    except OperationalError as error:
        reason = str(error.orig).splitlines()[0].rstrip(".")
        raise UserError(f"Can't use PostgreSQL: {reason}. Check RYZANSTEIN_DATABASE_URL.") from None
    if before == after:
        typer.echo(f"The schema is at {after} already.")
    else:
        typer.echo(f"Migrated from {before or 'nothing'} to {after}.")
