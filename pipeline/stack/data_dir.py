"""The folder of an embedded stack: what lies where, its secrets, and the lock that says that it runs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.embedded import new_password
from pipeline.errors import UserError

#: How long a new supervisor waits for the lock: `status` holds it, shared, for an instant.
_LOCK_PATIENCE = 2.0


class DataDirError(UserError):
    """The data folder can't be used."""


class AlreadyRunningError(UserError):
    """A stack runs in this data folder already."""


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What a stack keeps to itself for as long as its data lives."""

    #: Marks the processes of this stack in their environment, so that they are known again when all else is lost.
    stack_id: str
    postgres_password: str
    redis_password: str
    flower_password: str
    #: The first key of the tenant `default`; none before the first start got that far.
    api_key: str | None = None

    @classmethod
    def generate(cls) -> Secrets:
        return cls(
            stack_id=new_password(),
            postgres_password=new_password(),
            redis_password=new_password(),
            flower_password=new_password(),
        )


@dataclass(frozen=True)
class DataDir:
    """Paths below the folder that `--data-dir` names."""

    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def create(self) -> None:
        """Make the folders. Raises DataDirError where that can't be done, or where somebody else's files lie."""
        foreign = self.root.is_dir() and not self.lock_file.exists() and any(self.root.iterdir())
        if foreign:
            raise DataDirError(
                f"{self.root} holds files that are not a stack's. Give an empty or a new folder with --data-dir."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.lock_file.touch()  # first, since it marks the folder as ours
            for folder in (self.blobs, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DataDirError(f"Can't use {self.root} as data folder: {error.strerror}.") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for a supervisor. Raises AlreadyRunningError if another holds it.

        The kernel lets go of the lock when the process ends, whatever ends it.
        """
        self.create()
        with self.lock_file.open("a+") as lock:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise AlreadyRunningError(
                            f"A stack runs in {self.root} already (process {self.supervisor_pid()}). "
                            f"See `ryzanstein status --data-dir {self.root}`, or stop it with `ryzanstein down`."
                        ) from None
                    time.sleep(0.05)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def supervisor_pid(self) -> int | None:
        """The supervisor that runs now, or None."""
        try:
            lock = self.lock_file.open("r")
        except FileNotFoundError:
            return None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text else None
        return None

    def load_secrets(self) -> Secrets | None:
        """The secrets of this stack, or None if it was never started. Raises DataDirError if they are unreadable."""
        try:
            return Secrets(**json.loads(self.secrets_file.read_text()))
        except FileNotFoundError:
            return None
        except PermissionError:
            raise DataDirError(
                f"{self.secrets_file} belongs to another user; run this as the one who started the stack."
            ) from None
        except (ValueError, TypeError) as error:
            raise DataDirError(
                f"{self.secrets_file} is damaged ({error}); the data can't be opened without it."
            ) from None

    def ensure_secrets(self) -> Secrets:
        """The secrets of this stack, made on its first start."""
        secrets = self.load_secrets()
        if secrets is None:
            secrets = Secrets.generate()
            write_private(self.secrets_file, asdict(secrets))
        return secrets

    def keep_api_key(self, secrets: Secrets, api_key: str) -> Secrets:
        secrets = replace(secrets, api_key=api_key)
        write_private(self.secrets_file, asdict(secrets))
        return secrets


def write_private(path: Path, content: Any) -> None:
    """Replace a JSON file that only its owner may read; a reader sees the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
