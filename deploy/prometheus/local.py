"""A Prometheus on this machine for the stack that `ryzanstein up` runs: `python -m deploy.prometheus.local`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from pipeline.errors import UserError
from pipeline.stack.state import read_state
from pipeline.telemetry.metrics.targets import FOLDER

_HERE: Final = Path(__file__).parent


def prepare(data_dir: Path) -> Path:
    """Write the configuration for this stack into its data folder, and return the folder that it is in.

    Raises UserError if no stack runs there.
    """
    state = read_state(data_dir)
    folder = data_dir.expanduser().absolute() / "prometheus"
    (folder / "secrets").mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copy(_HERE / "prometheus.yml", folder)
    shutil.rmtree(folder / "rules", ignore_errors=True)  # a rule that there is no more would stay
    shutil.copytree(_HERE / "rules", folder / "rules")
    with open(
        os.open(folder / "secrets" / "flower_password", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
    ) as file:
        file.write(state.flower_password)
    link = folder / "targets"
    link.unlink(missing_ok=True)
    # A link, so that Prometheus sees what the next `up` writes.
    link.symlink_to(Path("..", FOLDER))
    return folder


def main(
    data_dir: Annotated[Path, typer.Option(help="The stack's data folder, as given to `up`.")],
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1 to serve on.")] = 9090,
    keep: Annotated[str, typer.Option(help="How long samples are kept.")] = "15d",
) -> None:
    """Run Prometheus for a stack on this machine, until it is interrupted."""
    program = shutil.which("prometheus")
    if program is None:
        raise UserError("There is no `prometheus` on the PATH. Install it; Debian's package is called prometheus.")
    folder = prepare(data_dir)
    options = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'samples'}",
        f"--storage.tsdb.retention.time={keep}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    os.execv(program, [program, *options])  # noqa: S606  it takes this process's place, and its signals


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(str(error))
