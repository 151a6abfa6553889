"""Blob storage for uploads: a local folder, or any store that fsspec knows (`s3://bucket/prefix`).

A blob is there whole or not at all: a writer that is discarded, fails or dies leaves nothing under the key.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast
from urllib.parse import unquote, urlsplit

import fsspec

from pipeline.errors import PipelineError
from pipeline.settings import get_settings

#: Blobs are read and handed on in pieces of this many bytes.
CHUNK_BYTES = 1024**2

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
#: Unfinished local blobs are written here, on the same file system, so that the rename is atomic.
_INCOMING = ".incoming"
#: No upload takes longer; what is older was left by a process that died.
_STALE_SECONDS = 86_400.0


class StorageError(PipelineError):
    """Blob storage can't be read or written."""


class BlobNotFoundError(StorageError):
    """There is no blob under this key."""


class _Sink(Protocol):
    """Where the bytes of one blob go until it is committed or discarded."""

    def write(self, data: bytes) -> object: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class _Store(Protocol):
    def create(self, key: str) -> _Sink: ...
    def open(self, key: str) -> BinaryIO: ...
    def delete(self, key: str) -> None: ...


class BlobWriter:
    """One blob being written. Leaving the `with` block without `commit()` discards it."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._is_open = True
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Append `data`. Raises StorageError, naming the reason."""
        with _reported("write to"):
            self._sink.write(data)
        self.num_bytes += len(data)

    def commit(self) -> None:
        """Make the blob readable under its key; it survives a crash from here on. Raises StorageError."""
        with _reported("write to"):
            self._sink.commit()
        self._is_open = False

    def discard(self) -> None:
        """Forget what was written. Never raises: there is nothing that the caller could do."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(Exception):
                self._sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


def create_blob(key: str) -> BlobWriter:
    """Start a blob whose bytes come from elsewhere. Raises StorageError."""
    with _reported("write to"):
        return BlobWriter(_store().create(_checked(key)))


def write_blob(key: str, chunks: Iterable[bytes]) -> int:
    """Write a whole blob, in bounded memory; returns its length in bytes. Raises StorageError."""
    with create_blob(key) as writer:
        for chunk in chunks:
            writer.write(chunk)
        writer.commit()
    return writer.num_bytes


def open_blob(key: str) -> BinaryIO:
    """A readable and seekable file, for the caller to close. Raises BlobNotFoundError, StorageError."""
    with _reported("read", key):
        return _store().open(_checked(key))


def stream_blob(key: str) -> Iterator[bytes]:
    """The bytes of a blob in pieces of at most `CHUNK_BYTES`. Errors in opening are raised by the first piece."""
    with open_blob(key) as blob:
        while True:
            with _reported("read", key):
                chunk = blob.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def delete_blob(key: str) -> None:
    """Remove a blob; one that is not there is fine. Raises StorageError."""
    with _reported("delete from"):
        _store().delete(_checked(key))


def check_writable() -> None:
    """Write, read and remove a small blob. Raises StorageError."""
    key, content = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
    write_blob(key, [content])
    try:
        if b"".join(stream_blob(key)) != content:
            raise StorageError(f"Blob storage {get_settings().storage_url} gives back other bytes than were written.")
    finally:
        delete_blob(key)


class _LocalSink:
    """A file under a temporary name; `commit` makes it durable, then gives it its own name."""

    def __init__(self, root: Path, path: Path) -> None:
        self._path = path
        incoming = root / _INCOMING
        incoming.mkdir(parents=True, exist_ok=True)
        _remove_stale(incoming)
        self._temporary = incoming / secrets.token_hex(16)
        self._file = self._temporary.open("xb")

    def write(self, data: bytes) -> object:
        return self._file.write(data)

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # else a crash of the machine could forget the name
        finally:
            os.close(folder)

    def discard(self) -> None:
        try:
            self._file.close()  # flushes, which a full disk refuses
        finally:
            self._temporary.unlink(missing_ok=True)


class _LocalStore:
    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, key: str) -> _Sink:
        return _LocalSink(self._root, self._root / key)

    def open(self, key: str) -> BinaryIO:
        return (self._root / key).open("rb")

    def delete(self, key: str) -> None:
        (self._root / key).unlink(missing_ok=True)


class _RemoteSink:
    """fsspec uploads the parts as they come and joins them at `commit`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        return self._file.write(data)

    def commit(self) -> None:
        self._file.close()
        self._file.commit()

    def discard(self) -> None:
        self._file.discard()
        with contextlib.suppress(AttributeError):  # not every kind of file lets itself be marked
            self._file.closed = True  # else the garbage collector closes it, which starts to send what is left


class _RemoteStore:
    def __init__(self, url: str) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(url)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def create(self, key: str) -> _Sink:
        return _RemoteSink(self._filesystem.open(self._path(key), "wb", autocommit=False))

    def open(self, key: str) -> BinaryIO:
        return cast("BinaryIO", self._filesystem.open(self._path(key), "rb"))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(key))


def _store() -> _Store:
    return _store_at(get_settings().storage_url)


@lru_cache(maxsize=4)
def _store_at(url: str) -> _Store:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _LocalStore(Path(unquote(parts.path)))
    try:
        return _RemoteStore(url)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"The setting storage_url can't be used: {error}. Install what it names, or correct it."
        ) from None


def _checked(key: str) -> str:
    """Keys are ours, never a client's; one that could leave the root is a mistake of the caller."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no blob key: use letters, digits and ._- in parts that are joined by /.")
    return key


def _remove_stale(incoming: Path) -> None:
    oldest = time.time() - _STALE_SECONDS
    for path in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if path.stat().st_mtime < oldest:
                path.unlink()


@contextlib.contextmanager
def _reported(action: str, key: str | None = None) -> Iterator[None]:
    """Turn what a store raises into a StorageError that says what to do; remote drivers raise types of their own."""
    try:
        yield
    except (StorageError, ValueError):
        raise
    except FileNotFoundError:
        if key is None:
            raise StorageError(
                f"Blob storage {get_settings().storage_url} is gone. Restore it, then try again."
            ) from None
        raise BlobNotFoundError(f"There is no blob {key} in {get_settings().storage_url}.") from None
    except Exception as error:
        raise StorageError(
            f"Can't {action} blob storage {get_settings().storage_url}: {_reason(error)}. {_advice(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


def _advice(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, then try again."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Let the service's user write there, or set RYZANSTEIN_STORAGE_URL to a place where it may."
    return "Check that the store is there and reachable, then try again."
