"""Room on the disks that fill up."""

from __future__ import annotations

from sqlalchemy import Connection

from pipeline.checks.disk import growing_disks
from pipeline.settings import get_settings
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values


def read_disks(_: Connection) -> Values:
    """Nothing where blobs are in a store elsewhere and PostgreSQL runs by itself."""
    disks = growing_disks(get_settings())
    return {
        names.DISK_FREE: [((name,), float(disk.free)) for name, disk in disks.items()],
        names.DISK_SIZE: [((name,), float(disk.total)) for name, disk in disks.items()],
    }
