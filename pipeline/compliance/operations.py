"""That the service goes on, and stands on software without known holes."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from sqlalchemy import func, select, text

from pipeline.checks.findings import Verdict
from pipeline.checks.redis_server import check_redis
from pipeline.compliance.evidence import Evidence, Inspection, gap, met, unknown
from pipeline.settings import PREFIX
from pipeline.tables import Group, GroupState

_PACKAGES: Final = ("ryzanstein", "celery", "kombu", "redis", "sqlalchemy", "psycopg", "fastapi", "uvicorn", "flower")
_COPIES: Final = text("""
    SELECT current_setting('archive_mode') AS archive_mode,
           (SELECT count(*) FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')) AS num_standbys
""")


def check_groups(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        query = select(Group.model, func.count()).where(Group.state == GroupState.READY).group_by(Group.model)
        ready = dict(conn.execute(query.order_by(Group.model)).all())
    if not ready:
        yield gap("no group is ready", "Start one with `ryzanstein worker MODEL`; batches wait until then.")
    for model, count in ready.items():
        if count > 1:
            yield met(f"{count} groups serve {model}: where one is lost, another goes on with what it had")
        else:
            yield gap(f"one group serves {model}: while it is away, batches wait", "Run a second one.")


def check_copies(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        copies = conn.execute(_COPIES).one()
    if copies.archive_mode != "off" or copies.num_standbys:
        yield met(f"PostgreSQL archives its log ({copies.archive_mode}) and has {copies.num_standbys} standbys")
    else:
        yield gap(
            "PostgreSQL neither archives its log nor has a standby: the loss of its disk is the loss of everything",
            "Set up continuous archiving or a standby; dumps alone can't be seen from here.",
        )
    yield unknown("when a copy was last restored can't be seen from here", "Restore one now and then; keep a record.")


def check_releases(inspection: Inspection) -> Iterator[Evidence]:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield met(f"Python {platform.python_version()}; {versions}")
    for finding in check_redis():
        if finding.subject == "redis version":
            yield gap(finding.detail, finding.advice)
        elif finding.subject == "redis" and finding.verdict is Verdict.FAILED:
            yield unknown(f"Redis: {finding.detail}")
        elif finding.subject == "redis":
            yield met(f"Redis {finding.detail}")


def check_limits(inspection: Inspection) -> Iterator[Evidence]:
    settings = inspection.settings
    yield met(
        f"an upload has {settings.max_upload_bytes:,} bytes at most, a batch {settings.max_batch_lines:,} lines of "
        f"{settings.max_line_bytes:,} bytes; any other body 1,048,576 bytes; an answer begins within 10 s"
    )
    if settings.tenant_enqueued_tokens or settings.tenant_enqueued_batches:
        yield met(
            f"a tenant may have {_limit(settings.tenant_enqueued_tokens)} prompt tokens of a model and "
            f"{_limit(settings.tenant_enqueued_batches)} batches enqueued, and make "
            f"{_limit(settings.tenant_requests_per_minute)} calls in a minute"
        )
    else:
        yield gap(
            "what a tenant may have enqueued has no limit but those that were set for some",
            f"Set {PREFIX}TENANT_ENQUEUED_TOKENS and {PREFIX}TENANT_ENQUEUED_BATCHES.",
        )


def _limit(number: int) -> str:
    return f"{number:,}" if number else "any number of"
