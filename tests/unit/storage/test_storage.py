from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.settings import get_settings
from pipeline.storage import BlobNotFoundError, StorageError


@pytest.fixture
def root(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder that the blobs of the test go to."""
    return tmp_path / "blobs"


@pytest.fixture(params=["file", "memory"])
def any_store(request: pytest.FixtureRequest, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "memory":
        settings_env.setenv("RYZANSTEIN_STORAGE_URL", f"memory://{tmp_path.name}")
        get_settings.cache_clear()


def left_over(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.usefixtures("any_store")
def test_a_blob_comes_back_as_it_was_written() -> None:
    assert storage.write_blob("uploads/one", [b"a" * 3, b"", b"b"]) == 4

    assert b"".join(storage.stream_blob("uploads/one")) == b"aaab"
    with storage.open_blob("uploads/one") as blob:
        blob.seek(3)
        assert blob.read() == b"b"


@pytest.mark.usefixtures("any_store")
def test_a_deleted_blob_is_not_found_and_deleting_again_is_fine() -> None:
    storage.write_blob("one", [b"x"])
    storage.delete_blob("one")
    storage.delete_blob("one")

    with pytest.raises(BlobNotFoundError, match="no blob one"):
        storage.open_blob("one")
    with pytest.raises(BlobNotFoundError):
        next(storage.stream_blob("one"))


@pytest.mark.usefixtures("any_store")
def test_a_writable_store_passes_its_check() -> None:
    storage.check_writable()


def test_a_blob_is_streamed_in_bounded_pieces(root: Path) -> None:
    storage.write_blob("large", (b"x" * 700_000 for _ in range(4)))

    pieces = list(storage.stream_blob("large"))

    assert max(map(len, pieces)) == storage.CHUNK_BYTES
    assert sum(map(len, pieces)) == 2_800_000


def test_a_source_that_fails_leaves_nothing(root: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        storage.write_blob("one", chunks())
    assert left_over(root) == []


def test_a_writer_that_is_not_committed_leaves_nothing(root: Path) -> None:
    with storage.create_blob("one") as writer:
        writer.write(b"half")
    assert left_over(root) == []


def test_a_writer_that_dies_leaves_no_blob_and_its_rest_is_removed_later(root: Path) -> None:
    code = "import os; from pipeline import storage; w = storage.create_blob('one'); w.write(b'x' * 10**6); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": os.getcwd()})
    [rest] = left_over(root)
    with pytest.raises(BlobNotFoundError):
        storage.open_blob("one")

    old = time.time() - 2 * 86_400
    os.utime(root / rest, (old, old))
    storage.write_blob("two", [b"x"])

    assert left_over(root) == ["two"]


def test_a_place_that_is_no_folder_says_what_to_do(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    settings_env.setenv("RYZANSTEIN_STORAGE_URL", f"file://{tmp_path}/taken")
    get_settings.cache_clear()

    with pytest.raises(StorageError, match=r"Can't write to blob storage .*/taken: Not a directory.*try again"):
        storage.write_blob("one", [b"x"])


def test_a_full_disk_says_so_and_leaves_nothing(root: Path, settings_env: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings_env.setattr(os, "fsync", refuse)

    with pytest.raises(StorageError, match=r"No space left on device\. Free space there"):
        storage.write_blob("one", [b"x"])
    assert left_over(root) == []


def test_an_unknown_kind_of_store_is_named(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv("RYZANSTEIN_STORAGE_URL", "nowhere://bucket")
    get_settings.cache_clear()

    with pytest.raises(StorageError, match="nowhere"):
        storage.check_writable()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".incoming/x", "a\x00"])
def test_a_key_that_could_leave_the_root_is_refused(root: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no blob key"):
        storage.write_blob(key, [b"x"])
