"""What every process of the service looks at before it begins."""

from __future__ import annotations

import structlog
from sqlalchemy.exc import SQLAlchemyError

from pipeline.checks.disk import check_disk
from pipeline.checks.findings import Verdict
from pipeline.checks.postgres import check_postgres
from pipeline.checks.redis_server import check_redis
from pipeline.errors import ConfigurationError
from pipeline.settings import get_settings
from pipeline.tables.session import get_engine
from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)


def check_at_start() -> None:
    """Log what is wrong with the servers. Raises ConfigurationError where the promise can't be kept like this.

    A server that is away is no reason not to start: every process waits for it, and says so.
    """
    try:
        with get_engine().connect() as conn:
            found = [*check_postgres(conn)]
    except SQLAlchemyError as error:
        log.warning("PostgreSQL does not answer yet", reason=summarize_error(error))
        found = []
    found += [*check_redis(), *check_disk(get_settings())]
    for finding in found:
        if finding.verdict is Verdict.WARNING:
            log.warning(
                "a server is not as it should be", subject=finding.subject, detail=finding.detail, advice=finding.advice
            )
    if wrong := [finding for finding in found if finding.verdict is Verdict.FAILED and finding.subject != "redis"]:
        raise ConfigurationError(" ".join(f"{one.subject}: {one.detail}. {one.advice}" for one in wrong))
