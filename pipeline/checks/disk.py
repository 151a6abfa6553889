"""Whether there is room on the disks of this machine that fill up."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pipeline.checks.findings import Finding, warning
from pipeline.settings import Settings

#: Free space below which somebody should look.
FREE_BYTES: Final = 5 * 1024**3


@dataclass(frozen=True)
class Disk:
    """The disk that a folder is on, in bytes."""

    folder: Path
    free: int
    total: int


def growing_disks(settings: Settings) -> dict[str, Disk]:
    """Those of the folders on this machine that grow: local blob storage, and all of an embedded stack."""
    folders = {"storage": Path(unquote(urlsplit(settings.storage_url).path))} if _is_local(settings) else {}
    if settings.data_dir is not None:
        folders["data folder"] = settings.data_dir
    found = {}
    for name, folder in folders.items():
        with contextlib.suppress(OSError):  # not made yet, or said by the check whether it can be written
            usage = shutil.disk_usage(folder)
            found[name] = Disk(folder, usage.free, usage.total)
    return found


def check_disk(settings: Settings) -> Iterator[Finding]:
    for name, disk in growing_disks(settings).items():
        if disk.free < FREE_BYTES:
            yield warning(
                f"{name} disk",
                f"{disk.free / 1024**3:.1f} GiB are free in {disk.folder}",
                "Make room: on a full disk uploads are refused, and PostgreSQL stops.",
            )


def _is_local(settings: Settings) -> bool:
    return urlsplit(settings.storage_url).scheme == "file"
