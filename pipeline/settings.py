"""Every setting of every process. `docs/settings.md` is generated from this class."""

from __future__ import annotations

import os
from decimal import Decimal
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import ConfigurationError
from pipeline.redis_urls import has_readable_port, tls_options
from pipeline.schemas.windows import window_seconds

PREFIX = "RYZANSTEIN_"

#: The shortest and the longest of completion windows.
_WINDOWS = "^[1-9][0-9]{0,5}[mhd]-[1-9][0-9]{0,5}[mhd]$"


class Settings(BaseSettings):
    """Read once at start from the environment; an unknown `RYZANSTEIN_` variable is an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # --- where things are
    database_url: SecretStr = Field(
        SecretStr("postgresql+psycopg://ryzanstein@127.0.0.1:5432/ryzanstein"),
        description="PostgreSQL, the truth. With TLS: `…?sslmode=verify-full&sslrootcert=FILE`.",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis: tickets and control messages. With TLS: `rediss://USER:PASSWORD@HOST:PORT/0`, and "
        "`?ssl_ca_certs=FILE` for an authority of your own.",
    )
    storage_url: str = Field(
        "file:///var/lib/ryzanstein/blobs",
        description="Blob storage for uploads: `file:///path` or `s3://bucket/prefix`.",
    )

    # --- gateway
    gateway_host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    gateway_port: int = Field(8000, ge=0, le=65535, description="Port that the gateway listens on.")
    key_failures_per_minute: int = Field(
        60,
        ge=0,
        description="Calls with a wrong key that one address may make in a minute; more are answered by 429, and a "
        "right key still passes. 0 is no limit.",
    )
    tenant_requests_per_minute: int = Field(
        60_000,
        ge=0,
        description="Calls that a tenant may make in a minute, with all of its keys; `ryzanstein limits set` says "
        "otherwise for one tenant or key. 0 is no limit.",
    )
    tenant_tokens_per_minute: int = Field(
        1_000_000_000,
        ge=0,
        description="Tokens that a tenant may submit in a minute: of an input file, a quarter of its bytes. 0 is no "
        "limit.",
    )
    tenant_enqueued_tokens: int = Field(
        0,
        ge=0,
        description="Prompt tokens without an outcome that a tenant may have of each model; a batch that would pass it "
        "fails with `token_limit_exceeded`. 0 is no limit.",
    )
    tenant_enqueued_batches: int = Field(
        0, ge=0, description="Batches that have not ended that a tenant may have. 0 is no limit."
    )
    max_upload_bytes: int = Field(512 * 1024**2, gt=0, description="Largest upload of any purpose, in bytes.")
    max_batch_file_bytes: int = Field(200 * 1024**2, gt=0, description="Largest input file of a batch, in bytes.")
    max_batch_lines: int = Field(50_000, gt=0, description="Most lines in the input file of a batch.")
    max_line_bytes: int = Field(4 * 1024**2, gt=0, description="Longest line in the input file of a batch, in bytes.")
    file_expiry_seconds: int = Field(30 * 86400, ge=3600, description="Age at which an input file expires by itself.")

    console_session_hours: int = Field(
        12, gt=0, le=24 * 30, description="Hours after which who has signed in to the console signs in again."
    )

    quote_hours: int = Field(24, gt=0, le=24 * 90, description="Time for which the price of a quote holds, in hours.")

    # --- planning and leases
    slice_tokens: int = Field(
        65_536,
        gt=0,
        description="Size of a slice at most: prompt tokens and max_tokens of its requests together, but of each "
        "request's max_tokens no more than 512, since most answers end long before.",
    )
    slice_requests: int = Field(2_048, gt=0, description="Most requests in a slice.")
    lease_seconds: float = Field(15.0, gt=0, description="Length of a lease; it is renewed four times within.")
    sweep_seconds: float = Field(5.0, gt=0, description="How often the sweeper runs, and an idle group looks into SQL.")
    relay_seconds: float = Field(1.0, gt=0, description="How often the relay publishes what direct publishing missed.")
    max_attempts: int = Field(
        10, gt=0, description="Attempts without an outcome after which a slice that keeps losing its lease fails."
    )

    # --- fair shares and service classes
    fair_cached_weight: Decimal = Field(
        Decimal("0.1"),
        ge=0,
        le=1,
        description="What a prompt token found in the prefix cache counts in a tenant's share; one that is computed "
        "counts 1.",
    )
    fair_output_weight: Decimal = Field(
        Decimal(2), gt=0, le=100, description="What an output token counts in a tenant's share."
    )
    fair_affinity_tokens: int = Field(
        16_384,
        ge=0,
        description="Weighted tokens by which a tenant may be ahead of the others while a group goes on in its batch, "
        "for the sake of the prefix cache.",
    )
    class_ageing_seconds: float = Field(
        300.0,
        gt=0,
        description="A class that waits while higher ones are served gets a slice of every group at least so often.",
    )

    priority_windows: str = Field(
        "15m-24h", pattern=_WINDOWS, description="Completion windows of the class `priority`: shortest-longest."
    )
    standard_windows: str = Field("15m-7d", pattern=_WINDOWS, description="The same of the class `standard`.")
    flex_windows: str = Field("24h-7d", pattern=_WINDOWS, description="The same of the class `flex`.")
    missed_window_credit: Decimal = Field(
        Decimal("0.25"),
        ge=0,
        le=1,
        description="Part of its cost that is credited for a batch that had not ended when its window did. 0 is none.",
    )

    # --- group
    group_slices: int = Field(
        256,
        gt=0,
        description="Slices that a group may hold at once; more than three only while they do not fill its engine.",
    )
    record_requests: int = Field(64, gt=0, description="Most outcomes recorded in one transaction.")
    record_seconds: float = Field(0.25, gt=0, description="Longest that an outcome waits to be recorded, in seconds.")
    worker_health_host: str = Field("127.0.0.1", description="Address on which a group answers /healthz and /readyz.")
    worker_health_port: int = Field(
        0, ge=0, le=65535, description="Port for that; 0 takes any free one, which the group's `info` in SQL tells."
    )
    drain_seconds: float = Field(30.0, ge=0, description="Time that a stopping group gives its running requests.")
    max_crash_exposures: int = Field(3, gt=0, description="Engine crashes after which a suspect request fails.")
    kv_cache_tokens: int = Field(0, ge=0, description="Tokens that the KV cache holds; 0 sizes it from free memory.")
    max_num_sequences: int = Field(256, gt=0, description="Sequences that run in one step at most.")
    step_tokens: int = Field(2_048, gt=0, description="Token budget of one engine step.")
    step_seconds: float = Field(
        4.0,
        gt=0,
        description="Step deadline: a step that takes longer counts as a hang. On a GPU it is 30 s at least, and "
        "everywhere ten times what a full step is expected to take.",
    )
    echo_tokens_per_second: float = Field(
        0.0, ge=0, description="Echo engine only: completion tokens per second over all its requests; 0 is no limit."
    )

    # --- money
    default_currency: str = Field("USD", pattern="^[A-Z]{3}$", description="Currency of rate cards that `up` makes.")
    default_input_price: Decimal = Field(Decimal("0.10"), ge=0, description="`up`: price of 1,000,000 input tokens.")
    default_cached_input_price: Decimal = Field(
        Decimal("0.05"), ge=0, description="`up`: price of 1,000,000 input tokens found in the prefix cache."
    )
    default_output_price: Decimal = Field(Decimal("0.40"), ge=0, description="`up`: price of 1,000,000 output tokens.")
    default_batch_discount: Decimal = Field(
        Decimal("0.5"), ge=0, le=1, description="`up`: part of the price that a batch saves."
    )

    # --- invoices
    supplier_name: str = Field("Ryzanstein", description="Who invoices are from.")
    supplier_address: str = Field("", description="Its address; `\\n` begins a new line.")
    supplier_tax_id: str = Field("", description="Its tax number, as invoices show it.")
    supplier_note: str = Field("", description="What invoices say at their end, such as how to pay.")
    invoice_prefix: str = Field(
        "INV", pattern="^[A-Za-z0-9-]{1,16}$", description="Numbers of invoices: PREFIX-YEAR-000001, without gaps."
    )
    invoice_collection_seconds: int = Field(
        3600, ge=0, description="Time after a month's end in which its invoices wait for what was still under way."
    )
    invoice_fonts: str = Field(
        "",
        description="Files of TrueType or OpenType fonts for what the font of PDF invoices does not have, such as "
        "Chinese names; separated by `:`. Those of the system are found by themselves.",
    )
    receipts: bool = Field(
        False, description="Whether batches that do not say so themselves get signed receipts in their output files."
    )

    # --- retention
    retention_months: int | None = Field(
        None,
        ge=1,
        description="Full months, before the one that runs, for which requests, answers, usage events and rated lines "
        "are kept; older ones are dropped when their batches have ended and their invoices are final. Unset: for ever.",
    )

    # --- telemetry
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged.")
    log_format: str = Field(
        "console", pattern="^(console|json)$", description="`console` for people, `json` for machines."
    )
    otlp_endpoint: str = Field(
        "",
        pattern="^(https?://.+)?$",
        description="Collector of traces, which takes OTLP over HTTP: `http://127.0.0.1:4318`. Empty: no traces. "
        "Headers that it wants go into `OTEL_EXPORTER_OTLP_HEADERS`. Needs `ryzanstein[traces]`.",
    )
    trace_share: float = Field(
        1.0, ge=0, le=1, description="Part of the traces that is kept, of those that clients did not decide on."
    )
    flower_host: str = Field("127.0.0.1", description="Address that Flower listens on.")
    flower_port: int = Field(5555, ge=0, le=65535, description="Port that Flower listens on.")
    flower_url: str = Field(
        "", description="Where people reach Flower, for the link in the console; empty: the console has no such link."
    )
    flower_auth: str = Field(
        "basic",
        pattern="^(basic|google|github|gitlab|okta)$",
        description="How people sign in to Flower: `basic` with a password, or through OAuth of one of the others.",
    )
    flower_user: str = Field("ryzanstein", description="User of Flower's basic authentication.")
    flower_password: SecretStr | None = Field(
        None,
        description="Password of Flower, which does not start without one; with OAuth it is that of its `/metrics` "
        "alone, and may be left out.",
    )
    flower_oauth_client_id: str = Field("", description="OAuth: what the provider calls this Flower.")
    flower_oauth_client_secret: SecretStr | None = Field(None, description="OAuth: the secret that belongs to it.")
    flower_oauth_redirect_url: str = Field(
        "", description="OAuth: Flower's address as the provider knows it, with `/login` at its end."
    )
    flower_oauth_emails: str = Field(
        "", description="OAuth: who may sign in: `a@example.com`, several with `|` between, or `.*@example.com`."
    )
    flower_oauth_server: str = Field(
        "",
        description="OAuth: a GitHub Enterprise or GitLab of your own (`git.example.com`); of Okta, the address of its "
        "authorization server (`https://example.okta.com/oauth2/default`), which has no default.",
    )
    flower_read_only: bool = Field(
        True,
        description="`false` lets everybody who signs in to Flower stop workers and send tasks: that is to run what "
        "they like on your machines.",
    )
    flower_state_dir: Path | None = Field(
        None,
        description="Folder in which Flower keeps what it has seen, over its restarts. Unset: `flower` in the data "
        "folder; without one, Flower forgets.",
    )
    console_url: str = Field(
        "", description="Where people reach the console, for the links in Flower; empty: Flower has no such links."
    )

    metrics_host: str = Field(
        "127.0.0.1",
        description="Address on which gateway and control show /metrics, each on a port of its own. They are of all "
        "tenants and ask for no key: let it be one that only Prometheus reaches.",
    )
    gateway_metrics_port: int = Field(
        0, ge=0, le=65535, description="The gateway's port for that; 0 takes any free one, which its log tells."
    )
    control_metrics_port: int = Field(0, ge=0, le=65535, description="The same of control.")
    metrics_tenants: int = Field(
        20, ge=0, description="Tenants with series of their own, those with the most tokens; the others are `_other`."
    )
    metrics_drift_seconds: float = Field(
        3600.0,
        ge=0,
        description="How often control compares the books of the month for its metrics. 0: never, but for every night.",
    )

    # --- client commands (submit, watch, download, …)
    base_url: str = Field("http://127.0.0.1:8000/v1", description="Gateway that the client commands talk to.")
    api_key: SecretStr | None = Field(None, description="Key that the client commands use.")

    # --- webhooks
    webhook_http: bool = Field(False, description="Whether webhooks may go to `http://` URLs, which anybody can read.")
    webhook_private_networks: str = Field(
        "",
        description="Networks that webhooks may go to although they are not public, such as `10.1.0.0/16,fd00::/8`. "
        "Tenants choose the URLs: name none that holds what they must not reach.",
    )

    # --- signatures
    signing_key_file: Path | None = Field(
        None,
        description="Private Ed25519 key in PEM that signs receipts and records of erasure, and that secrets of "
        "webhooks are derived from; made where it is not there. All processes share it. Unset: `signing_key.pem` in "
        "the data folder.",
    )

    data_dir: Path | None = Field(None, description="Folder of the embedded stack; set by `up` for its processes.")

    # A password that is not escaped makes an address that is misread, and then repeated in errors: in time, then.
    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        tls_options(url.get_secret_value())
        return url

    @field_validator("priority_windows", "standard_windows", "flex_windows")
    @classmethod
    def _check_windows(cls, windows: str) -> str:
        shortest, longest = map(window_seconds, windows.split("-"))
        if shortest > longest:
            raise ValueError("the shortest comes first")
        return windows

    @field_validator("webhook_private_networks")
    @classmethod
    def _check_networks(cls, networks: str) -> str:
        for name in filter(None, map(str.strip, networks.split(","))):
            ip_network(name)
        return networks

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr) -> SecretStr:
        if not has_readable_port(url.get_secret_value()):
            raise ValueError("in the password, any of / ? # @ : % is written as %2F, and so on")
        return url


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process. Raises ConfigurationError, naming every wrong variable and what it may be."""
    unknown, settings, wrong = _unknown_variables(), None, []
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = [f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
    messages = []
    if unknown:
        messages.append(f"Unknown setting {', '.join(unknown)}. docs/settings.md lists the known ones.")
    if wrong:
        messages.append("Wrong setting. " + "; ".join(wrong))
    if settings is None or messages:
        raise ConfigurationError(" ".join(messages))
    return settings


def _unknown_variables() -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
