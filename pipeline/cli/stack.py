"""`ryzanstein up`, `down`, `restart` and `status`: the whole service on one machine."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from pipeline.errors import UserError
from pipeline.stack.data_dir import DataDir
from pipeline.stack.options import Device, Dtype, Engine, Quantize, StackOptions, example_model

#: Exit code of `status` where no stack runs.
NOT_RUNNING = 3
#: How long `down` waits for a stack to end in order, in seconds.
_DOWN_SECONDS = 120.0

_DATA_DIR = typer.Option(
    Path("ryzanstein-data"),
    "--data-dir",
    envvar="RYZANSTEIN_DATA_DIR",
    help="Folder of the stack: its data, secrets and logs.",
)
_JSON = typer.Option(False, "--json", help="Print one JSON object.")


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(restart)
    app.command()(status)


def up(
    model: str | None = typer.Option(None, help="Model folder in the Hugging Face layout, or its name on the hub."),
    data_dir: Path = _DATA_DIR,
    port: int | None = typer.Option(
        None, min=0, max=65535, help="Port of the gateway; 0 takes a free one.  [default: 8000, or a free one]"
    ),
    host: str = typer.Option("127.0.0.1", help="Address that the gateway listens on."),
    model_name: str | None = typer.Option(None, help="What requests call the model.  [default: the folder's name]"),
    tp: int = typer.Option(1, min=1, help="Ranks per group: tensor parallelism."),
    groups: int = typer.Option(1, min=1, help="Groups."),
    dtype: Dtype = typer.Option(Dtype.AUTO, help="Type of the weights while they run."),
    quantize: Quantize = typer.Option(Quantize.NONE, help="Weights in 8 bits: about twice as fast on a CPU."),
    device: Device = typer.Option(Device.CPU, help="Where the ranks run."),
    engine: Engine = typer.Option(Engine.NATIVE, help="`echo` repeats the prompt: for tests and benchmarks."),
    load_seconds: float = typer.Option(600.0, min=1, help="How long the model may take to load."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Return when everything is ready; it runs on."),
    as_json: bool = _JSON,
) -> None:
    """Start the whole service on this machine, PostgreSQL and Redis included, and watch over it.

    Runs until it is interrupted, or with --detach until `ryzanstein down`. The data stays for the next time.
    """
    folder, name = _choose_model(model, model_name)
    options = StackOptions(
        data_dir=data_dir.expanduser().absolute(),
        model=folder,
        model_name=name,
        host=host,
        port=port,
        tp=tp,
        groups=groups,
        dtype=dtype,
        quantize=quantize,
        device=device,
        engine=engine,
        load_seconds=load_seconds,
    )
    DataDir(options.data_dir).create()
    _log_to(DataDir(options.data_dir).log("supervisor"), on_terminal=not detach)
    if detach:
        from pipeline.stack.detaching import start_detached

        _show(start_detached(options), as_json, footer=f"Stop it with: ryzanstein down --data-dir {_quote(data_dir)}")
        return

    from pipeline.stack.running import run_stack

    was_ready = False

    def on_ready(report: dict[str, Any]) -> None:
        nonlocal was_ready
        was_ready = True
        _show(report, as_json, footer="Ctrl-C stops it; the data stays.")

    run_stack(options, on_ready)
    if not was_ready:
        raise typer.Exit(130)


def down(data_dir: Path = _DATA_DIR, as_json: bool = _JSON) -> None:
    """Stop everything that `ryzanstein up` started in this data folder. The data stays."""
    from pipeline.stack.stopping import stop_stack

    was_running = stop_stack(DataDir(data_dir.expanduser().absolute()), patience=_DOWN_SECONDS)
    if as_json:
        typer.echo(json.dumps({"data_dir": str(data_dir.expanduser().absolute()), "was_running": was_running}))
    else:
        typer.echo("Stopped." if was_running else f"Nothing was running in {data_dir}.")


def restart(
    names: list[str] | None = typer.Argument(None, metavar="[PROCESS]...", help="As `ryzanstein status` calls them."),
    restart_all: bool = typer.Option(False, "--all", help="Every process but the supervisor."),
    wait_seconds: float = typer.Option(180.0, min=1, help="How long one may take until it is ready again."),
    data_dir: Path = _DATA_DIR,
    as_json: bool = _JSON,
) -> None:
    """Restart processes one after the other, each when the one before is ready again. Nothing that runs is lost.

    A group first finishes or gives back what it holds; the other groups go on with it from where it was.
    """
    from pipeline.stack.restarting import Restarted
    from pipeline.stack.restarting import restart as restart_processes

    if bool(names) == restart_all:
        raise UserError("Name the processes to restart, or give --all.")

    def tell(done: Restarted) -> None:
        if as_json:
            typer.echo(json.dumps(asdict(done)))
        else:
            typer.echo(f"{done.name} is back after {done.seconds:.1f} s (process {done.new_pid}).")

    restart_processes(DataDir(data_dir.expanduser().absolute()), names or [], patience=wait_seconds, tell=tell)


def status(data_dir: Path = _DATA_DIR, as_json: bool = _JSON) -> None:
    """Show what runs in this data folder: addresses, keys, and every process. Exit code 3 if nothing does."""
    from pipeline.stack.fleet import Fleet
    from pipeline.stack.report import report, stopped_report
    from pipeline.stack.state import find_state

    folder = DataDir(data_dir.expanduser().absolute())
    folder.load_secrets()  # says so if it is another user's
    state, supervisor_pid = find_state(folder), folder.supervisor_pid()
    if state is None or supervisor_pid is None:
        if as_json:
            typer.echo(json.dumps(stopped_report(folder, state)))
        else:
            typer.echo(f"No stack runs in {data_dir}.")
        raise typer.Exit(NOT_RUNNING)
    fleet = Fleet(state.database_url)
    found = report(state, supervisor_pid, fleet)
    fleet.close()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found, as_json)
        _show_processes(found)


def _choose_model(model: str | None, model_name: str | None) -> tuple[Path, str]:
    from pipeline.model_folder import resolve_model

    if model is None:
        example = example_model()
        if example is None:
            raise UserError("Say which model to serve: --model FOLDER, or --model OWNER/NAME from the hub.")
        typer.echo(f"No --model given: serving the example {example}.", err=True)
        model = str(example)
    folder = resolve_model(model)
    is_local = Path(model).expanduser().is_dir()
    return folder, model_name or (folder.name if is_local else model)


def _log_to(path: Path, *, on_terminal: bool) -> None:
    """What the supervisor does goes to its log; on a terminal people see it too."""
    logger = logging.getLogger("pipeline.stack")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    if on_terminal and sys.stderr.isatty():
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(terminal)


def _show(found: dict[str, Any], as_json: bool, footer: str | None = None) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        sys.stdout.flush()
        return
    lines = [
        f"Ryzanstein serves {found['model']}.",
        "",
        f"  base_url   {found['base_url']}",
        f"  api_key    {found['api_key']}",
        f"  Console    {found['base_url'].removesuffix('/v1')}/console  (sign in with the key)",
        f"  Flower     {found['flower_url']}  (user {found['flower_user']}, password {found['flower_password']})",
        f"  data       {found['data_dir']}",
        "",
        f"Submit a batch with: ryzanstein submit FILE --data-dir {_quote(found['data_dir'])} --wait",
        *([footer] if footer else []),
    ]
    typer.echo("\n".join(lines))
    sys.stdout.flush()


def _quote(path: Path | str) -> str:
    return shlex.quote(str(path))


def _show_processes(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("process", "pid", "state", "restarts", ""):
        table.add_column(column)
    for name, process in found["processes"].items():
        pid = "" if process["pid"] is None else str(process["pid"])
        table.add_row(name, pid, process["state"], str(process["restarts"]), process["reason"] or "")
    Console().print(table)
