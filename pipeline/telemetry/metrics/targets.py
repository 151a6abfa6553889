"""Where the processes of a stack show their metrics: a folder of files that Prometheus reads by itself (`file_sd`).

Each process writes its own when it listens, under a name that its successor has too. The files are the only place that
knows of ports that were free by chance.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Final

from pipeline.settings import Settings
from pipeline.stack.data_dir import write_private

# Not structlog: the supervisor does not set it up, and its standard output is for the report alone.
log = logging.getLogger(__name__)

FOLDER: Final = "metrics"


def announce(settings: Settings, name: str, process: str, host: str, port: int) -> None:
    """Say that the process of this name and kind listens there; without a data folder, the log alone says so."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log.info("metrics are shown at http://%s/metrics", address)
    if settings.data_dir is None:
        return
    folder = settings.data_dir / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        write_private(folder / f"{name}.json", [{"targets": [address], "labels": {"process": process}}])
    except OSError as error:  # a full disk, say; what the process does is worth more
        log.warning("where metrics are shown could not be written down: %s", error.strerror)


def read_targets(data_dir: Path) -> dict[str, str]:
    """The URL of each process's metrics by its name, of those that have been started."""
    urls = {}
    for path in sorted((data_dir / FOLDER).glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValueError, LookupError):  # it is just being replaced, or is none of ours
            (target,) = json.loads(path.read_text())[0]["targets"]
            urls[path.stem] = f"http://{target}/metrics"
    return urls


def forget_targets(data_dir: Path) -> None:
    """Those of the last run."""
    for path in (data_dir / FOLDER).glob("*.json"):
        path.unlink(missing_ok=True)
