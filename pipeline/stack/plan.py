"""Where the parts of one stack are: ports, URLs, passwords, and the environment that tells them to its processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.embedded import EmbeddedPostgres, EmbeddedRedis
from pipeline.errors import UserError
from pipeline.processes import free_port, port_is_free
from pipeline.settings import PREFIX
from pipeline.stack.data_dir import DataDir, Secrets
from pipeline.stack.leftovers import MARK
from pipeline.stack.options import DEFAULT_PORT, StackOptions

FLOWER_USER = "ryzanstein"
#: Settings that `up` decides unless they are set: whoever stops a stack on a desk does not want to wait long.
_DEFAULTS = {"DRAIN_SECONDS": "5"}


@dataclass(frozen=True)
class StackPlan:
    options: StackOptions
    data_dir: DataDir
    secrets: Secrets
    gateway_port: int
    flower_port: int
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis

    @classmethod
    def make(cls, options: StackOptions, data_dir: DataDir, secrets: Secrets) -> StackPlan:
        """Choose the ports. Raises UserError if the one that was asked for is taken."""
        server_env = {**_plain_environment(), MARK: secrets.stack_id}
        return cls(
            options=options,
            data_dir=data_dir,
            secrets=secrets,
            gateway_port=_gateway_port(options),
            flower_port=free_port(),
            postgres=EmbeddedPostgres(
                data_dir.postgres, secrets.postgres_password, data_dir.log("postgres"), env=server_env
            ),
            redis=EmbeddedRedis(data_dir.redis, secrets.redis_password, data_dir.log("redis"), env=server_env),
        )

    @property
    def gateway_url(self) -> str:
        host = "127.0.0.1" if self.options.host in ("0.0.0.0", "::") else self.options.host  # noqa: S104  to read, not to bind
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway_port}"

    @property
    def flower_url(self) -> str:
        return f"http://127.0.0.1:{self.flower_port}"

    def settings(self) -> Mapping[str, str]:
        """The `RYZANSTEIN_` variables of every process of the stack; what is set already stays, where it may."""
        values = {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "STORAGE_URL": os.environ.get(PREFIX + "STORAGE_URL", self.data_dir.blobs.as_uri()),
            "GATEWAY_HOST": self.options.host,
            "GATEWAY_PORT": str(self.gateway_port),
            "FLOWER_HOST": "127.0.0.1",
            "FLOWER_PORT": str(self.flower_port),
            "FLOWER_USER": FLOWER_USER,
            "FLOWER_PASSWORD": self.secrets.flower_password,
            "FLOWER_URL": os.environ.get(PREFIX + "FLOWER_URL", self.flower_url),
            "CONSOLE_URL": os.environ.get(PREFIX + "CONSOLE_URL", f"{self.gateway_url}/console"),
            "BASE_URL": f"{self.gateway_url}/v1",
            "DATA_DIR": str(self.data_dir.root),
        }
        for name, value in _DEFAULTS.items():
            values[name] = os.environ.get(PREFIX + name, value)
        return {PREFIX + name: value for name, value in values.items()}

    def environment(self) -> dict[str, str]:
        """The environment of our own processes; the key of a client is none of their business."""
        kept = {name: value for name, value in os.environ.items() if name != PREFIX + "API_KEY"}
        return {**kept, **self.settings(), MARK: self.secrets.stack_id}


def _gateway_port(options: StackOptions) -> int:
    if options.port is None:
        return DEFAULT_PORT if port_is_free(DEFAULT_PORT, options.host) else free_port(options.host)
    if options.port == 0:
        return free_port(options.host)
    if not port_is_free(options.port, options.host):
        raise UserError(
            f"Port {options.port} of {options.host} can't be used: another program listens there, or the address is "
            "not this machine's. Give another with --port; --port 0 takes a free one."
        )
    return options.port


def _plain_environment() -> dict[str, str]:
    """What PostgreSQL and Redis need of ours; no setting, and no secret of another program."""
    return {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "TZ")} | {
        "LANG": "C"
    }
