"""Whether there is room on the disks of this machine that fill up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pipeline.checks.findings import Finding, warning
from pipeline.settings import Settings

#: Free space below which somebody should look.
FREE_BYTES: Final = 5 * 1024**3


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Of the folders on this machine that grow: local blob storage, and all of an embedded stack."""
    folders = {"storage": Path(unquote(urlsplit(settings.storage_url).path))} if _is_local(settings) else {}
    if settings.data_dir is not None:
        folders["data folder"] = settings.data_dir
    for name, folder in folders.items():
        try:
            free = shutil.disk_usage(folder).free
        except OSError:  # not made yet, or said by the check whether it can be written
            continue
        if free < FREE_BYTES:
            yield warning(
                f"{name} disk",
                f"{free / 1024**3:.1f} GiB are free in {folder}",
                "Make room: on a full disk uploads are refused, and PostgreSQL stops.",
            )


def _is_local(settings: Settings) -> bool:
    return urlsplit(settings.storage_url).scheme == "file"
