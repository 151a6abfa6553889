"""A small disk of its own for a test: it can be full, read-only, or so slow that nothing on it moves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """An ext4 file system in a file, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.path))

    def make_writable(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.path))

    def freeze(self) -> None:
        """Whoever writes waits until `thaw`."""
        _run("fsfreeze", "--freeze", str(self.path))

    def thaw(self) -> None:
        _run("fsfreeze", "--unfreeze", str(self.path))


@contextmanager
def small_disk(folder: Path, num_mb: int = 24) -> Iterator[SmallDisk]:
    """Skips the test where nothing may be mounted, which takes root."""
    folder.mkdir(parents=True)
    image, path = folder / "image", folder / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(num_mb * 2**20)
    try:
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of a test's own can be mounted here: {error}")
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
