"""Prompts and answers: how long they are kept, where they lie, and that they are not in logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from pipeline.compliance.evidence import Evidence, Inspection, gap, met, unknown
from pipeline.settings import PREFIX
from pipeline.tenancy.erasing import list_erasures

#: Content that is older should have been asked about, in days.
KEPT_DAYS: Final = 90
_DAY: Final = 86_400
_REMOVE: Final = (
    f"Set {PREFIX}RETENTION_MONTHS, so that old months are dropped; `ryzanstein tenants erase` removes what is kept of "
    "a tenant."
)

_FILES: Final = text("""
    SELECT count(*) FILTER (WHERE storage_key IS NOT NULL) AS num_uploads,
           count(*) FILTER (WHERE storage_key IS NOT NULL AND expires_at IS NULL) AS num_kept_uploads,
           count(*) FILTER (WHERE view IS NOT NULL AND expires_at IS NULL) AS num_kept_views
    FROM files WHERE deleted_at IS NULL
""")
_OLD_BATCHES: Final = text("""
    SELECT count(*) AS num_batches, min(created_at)::date AS since FROM batches b
    WHERE created_at < now() - make_interval(days => :days)
      AND EXISTS (SELECT FROM requests r WHERE r.batch_id = b.id AND r.prompt_token_ids <> '')
""")
_HIDDEN: Final = text("""
    SELECT count(*) FROM files f
    WHERE f.view IS NOT NULL AND (f.deleted_at IS NOT NULL OR f.expires_at <= now())
      AND EXISTS (SELECT FROM requests r WHERE r.batch_id = f.batch_id AND r.prompt_token_ids <> '')
""")
_LOGGING: Final = text("SELECT name, setting FROM pg_settings WHERE name LIKE 'log\\_%'")


def check_retention(inspection: Inspection) -> Iterator[Evidence]:
    days = inspection.settings.file_expiry_seconds / _DAY
    with inspection.engine.connect() as conn:
        files = conn.execute(_FILES).one()
        old = conn.execute(_OLD_BATCHES, {"days": KEPT_DAYS}).one()
        num_hidden = conn.execute(_HIDDEN).scalar_one()
    yield met(f"input files of batches are deleted after {days:g} days, or when their tenant said or says so")
    if files.num_kept_uploads:
        yield gap(
            f"{files.num_kept_uploads} of {files.num_uploads} uploads never expire: they are for no batch",
            "Have tenants say `expires_after`, or delete them.",
        )
    if files.num_kept_views:
        yield gap(
            f"{files.num_kept_views} output and error files never expire",
            "Have tenants say `output_expires_after` when they create a batch.",
        )
    if old.num_batches:
        yield gap(
            f"prompts and answers of {old.num_batches} batches are older than {KEPT_DAYS} days, the oldest of "
            f"{old.since}",
            _REMOVE,
        )
    if num_hidden:
        yield gap(
            f"{num_hidden} output and error files were deleted or have expired, and their lines are still in SQL",
            _REMOVE,
        )


def check_erasures(inspection: Inspection) -> Iterator[Evidence]:
    """That the records of erasure are what was signed."""
    with Session(inspection.engine) as session:
        records = list_erasures(session)
    if wrong := [record.id for record in records if not record.is_valid]:
        yield gap(f"records of erasure are not what was signed: {', '.join(wrong)}", "Find out who changed them.")
    else:
        yield met(f"{len(records)} erasures of tenants are recorded, each with a signature that is valid")


def check_places(inspection: Inspection) -> Iterator[Evidence]:
    """Where content is, for a record of processing: hosts and folders."""
    settings = inspection.settings
    database = make_url(settings.database_url.get_secret_value())
    redis = urlsplit(settings.redis_url.get_secret_value())
    with inspection.engine.connect() as conn:
        num_tenants = conn.execute(text("SELECT count(*) FROM tenants")).scalar_one()
    yield met(
        f"tenants: {num_tenants}; their content is in PostgreSQL at {database.host or database.query.get('host')} and "
        f"in {settings.storage_url}; ids of batches and names of models pass through Redis at {redis.hostname}"
    )


def check_rest(inspection: Inspection) -> Iterator[Evidence]:
    yield unknown(
        f"it can't be seen from here whether what PostgreSQL and {inspection.settings.storage_url} lie on is encrypted",
        "Keep a record of that: encrypted volumes, and encryption of the bucket.",
    )


def check_logs(inspection: Inspection) -> Iterator[Evidence]:
    """That PostgreSQL's log is free of content; ours is tested to be."""
    yield met(
        "prompts, answers, keys and passwords are tested to be in no log, error, command line, trace or page of Flower"
    )
    with inspection.engine.connect() as conn:
        logs = {row.name: str(row.setting) for row in conn.execute(_LOGGING)}
    loud = []
    if logs["log_error_verbosity"] != "terse":
        loud.append("log_error_verbosity = terse")  # else DETAIL shows the row that was refused
    if logs["log_statement"] in ("mod", "all") and logs["log_parameter_max_length"] != "0":
        loud.append("log_statement = none")
    if logs["log_min_duration_statement"] != "-1" and logs["log_parameter_max_length"] != "0":
        loud.append("log_parameter_max_length = 0")
    if logs["log_parameter_max_length_on_error"] != "0":
        loud.append("log_parameter_max_length_on_error = 0")
    if loud:
        yield gap("PostgreSQL's own log may hold parts of prompts and answers", f"Set {', '.join(loud)} in it.")
    else:
        yield met("PostgreSQL logs neither parameters nor rows")


def check_log_collection(inspection: Inspection) -> Iterator[Evidence]:
    settings = inspection.settings
    if settings.log_format == "json" and settings.log_level in ("INFO", "DEBUG"):
        yield met(
            f"every call of the API is a line of JSON with caller, path, status and time (level {settings.log_level})"
        )
    if settings.log_format != "json":
        yield gap("logs are written for people", f"Set {PREFIX}LOG_FORMAT=json, and collect them.")
    if settings.log_level not in ("INFO", "DEBUG"):
        yield gap(f"calls of the API are not logged at level {settings.log_level}", f"Set {PREFIX}LOG_LEVEL=INFO.")
