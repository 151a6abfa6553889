"""What is encrypted on its way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url, text

from pipeline.compliance.evidence import Evidence, Inspection, gap, is_loopback, met
from pipeline.redis_urls import tls_options
from pipeline.settings import PREFIX

_SESSION: Final = text("SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")
#: Variables by which an S3 client is told of another store than Amazon's.
_S3_ENDPOINTS: Final = ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def check_postgres_tls(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        session = conn.execute(_SESSION).one_or_none()
        driver: Any = conn.connection.driver_connection
        is_encrypted, host = bool(driver.pgconn.ssl_in_use), str(driver.info.host)
    how = f"{session.version}, {session.cipher}" if session is not None else "TLS"
    mode = make_url(inspection.settings.database_url.get_secret_value()).query.get("sslmode", "prefer")
    advice = f"Add `sslmode=verify-full` and `sslrootcert=FILE` to {PREFIX}DATABASE_URL."
    if is_encrypted and mode == "verify-full":
        yield met(f"PostgreSQL at {host}: {how}; certificate and host are verified")
    elif is_encrypted:
        yield gap(f"PostgreSQL at {host}: {how}, but whose certificate it is is not verified (sslmode={mode})", advice)
    elif host.startswith("/") or is_loopback(host):
        yield met(f"PostgreSQL at {host}: not encrypted, and does not leave this machine")
    else:
        yield gap(f"PostgreSQL at {host}: not encrypted; prompts and answers can be read on the way", advice)


def check_redis_tls(inspection: Inspection) -> Iterator[Evidence]:
    url = inspection.settings.redis_url.get_secret_value()
    host, tls = urlsplit(url).hostname or "", tls_options(url)
    with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
    advice = f"Use rediss:// in {PREFIX}REDIS_URL, with `ssl_ca_certs=FILE` for an authority of your own."
    if tls is not None and tls["ssl_check_hostname"]:
        yield met(f"Redis at {host}: TLS; certificate and host are verified")
    elif tls is not None:
        yield gap(f"Redis at {host}: TLS, but whose certificate it is is not verified", advice)
    elif is_loopback(host):
        yield met(f"Redis at {host}: not encrypted, and does not leave this machine")
    else:
        yield gap(f"Redis at {host}: not encrypted; its password and what runs can be read on the way", advice)


def check_gateway_tls(inspection: Inspection) -> Iterator[Evidence]:
    settings = inspection.settings
    if urlsplit(settings.base_url).scheme == "https":
        yield met(f"clients are sent to {settings.base_url}; what ends TLS before the gateway is yours")
    elif is_loopback(settings.gateway_host):
        yield met(f"the gateway listens on {settings.gateway_host}, which other machines do not reach")
    else:
        yield gap(
            f"the gateway serves plain HTTP on {settings.gateway_host}: keys, prompts and answers can be read",
            f"Put a proxy with TLS in front of it, and its https:// address into {PREFIX}BASE_URL.",
        )
    if not is_loopback(settings.flower_host):
        yield gap(
            f"Flower serves plain HTTP on {settings.flower_host}: its password can be read",
            f"Put a proxy with TLS in front of it, or leave {PREFIX}FLOWER_HOST at 127.0.0.1.",
        )


def check_storage_tls(inspection: Inspection) -> Iterator[Evidence]:
    scheme = urlsplit(inspection.settings.storage_url).scheme
    plain = [name for name in _S3_ENDPOINTS if os.environ.get(name, "").startswith("http://")]
    if scheme == "file":
        yield met("uploads are in a local folder")
    elif scheme == "s3" and plain:
        yield gap(f"{plain[0]} names a store without TLS: uploads can be read on the way", "Use https:// in it.")
    elif scheme == "s3":
        yield met("uploads go to S3 over TLS")
    else:
        yield gap(f"uploads go to {scheme}://, of which nothing is known here", "See that it encrypts.")
