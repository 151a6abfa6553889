"""Who may do what: tenants by their keys, operators by the servers' users."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import text

from pipeline.compliance.evidence import Evidence, Inspection, gap, is_loopback, met
from pipeline.settings import PREFIX
from pipeline.stack.data_dir import DataDir
from pipeline.tenancy.console_sessions import IDLE

#: Keys that are older should be replaced, and those that nobody used for so long revoked, in days.
OLD_DAYS: Final = 365
UNUSED_DAYS: Final = 90
_SHORT_PASSWORD: Final = 16
_MOST_NAMED: Final = 10

_KEYS: Final = text("""
    SELECT id, tenant_id, revoked_at IS NOT NULL AS is_revoked,
           coalesce(expires_at <= now(), false) AS is_expired, expires_at IS NOT NULL AS expires,
           scopes IS NOT NULL AS is_limited, project_id IS NOT NULL AS is_of_project,
           created_at < now() - make_interval(days => :old) AS is_old,
           coalesce(last_used_at, created_at) < now() - make_interval(days => :unused) AS is_unused
    FROM api_keys ORDER BY created_at, id
""")
_OPERATOR_KEYS: Final = text("""
    SELECT id FROM api_keys
    WHERE is_operator AND revoked_at IS NULL AND NOT coalesce(expires_at <= now(), false) ORDER BY created_at, id
""")
_SESSIONS: Final = text("""
    SELECT count(*) FROM console_sessions s JOIN api_keys k ON k.id = s.api_key_id
    WHERE s.expires_at > now() AND s.last_seen_at > now() - CAST(:idle AS interval)
      AND k.revoked_at IS NULL AND NOT coalesce(k.expires_at <= now(), false)
""")
_ROLE: Final = text("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user")


def check_keys(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        keys = conn.execute(_KEYS, {"old": OLD_DAYS, "unused": UNUSED_DAYS}).all()
    active = [key for key in keys if not key.is_revoked and not key.is_expired]
    num_tenants, num_revoked = len({key.tenant_id for key in active}), sum(key.is_revoked for key in keys)
    yield met(
        f"keys in force: {len(active)}, of {num_tenants} tenants; revoked: {num_revoked}; expired: "
        f"{len(keys) - len(active) - num_revoked}; of those in force, {sum(key.expires for key in active)} expire, "
        f"{sum(key.is_limited for key in active)} have some scopes alone, {sum(key.is_of_project for key in active)} "
        "are of one project; of each, only its SHA-256 is kept"
    )
    if old := [key.id for key in active if key.is_old]:
        yield gap(
            f"keys older than {OLD_DAYS} days: {_named(old)}",
            "Replace them (`ryzanstein keys rotate`), and hand the new ones out.",
        )
    if unused := [key.id for key in active if key.is_unused]:
        yield gap(
            f"keys not used for {UNUSED_DAYS} days: {_named(unused)}",
            "Revoke them (`ryzanstein keys revoke`).",
        )


def check_sessions(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        num_open = conn.execute(_SESSIONS, {"idle": IDLE}).scalar_one()
    longest, idle = inspection.settings.console_session_hours, IDLE.total_seconds() / 3600
    yield met(
        f"sessions of the console that are open: {num_open}; one ends {longest} hours after it began, after {idle:g} "
        "hours without a page, and with its key"
    )


def check_operator_keys(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        ids = conn.execute(_OPERATOR_KEYS).scalars().all()
    yield met(f"keys of operators in force: {len(ids)}{f' ({_named(ids)})' if ids else ''}")


def check_guessing(inspection: Inspection) -> Iterator[Evidence]:
    if limit := inspection.settings.key_failures_per_minute:
        yield met(f"an address may fail {limit} times in a minute; keys have 192 random bits")
    else:
        yield gap("an address may try as many keys as it likes", f"Set {PREFIX}KEY_FAILURES_PER_MINUTE.")


def check_database_role(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        role = conn.execute(_ROLE).one()
    if role.rolsuper:
        yield gap(
            f"the role {role.rolname} is a superuser of PostgreSQL: it may read every database and the server's files",
            "Give the service a role that owns its database and nothing else. `ryzanstein up` runs a PostgreSQL that "
            "holds nothing else.",
        )
    else:
        yield met(f"the role {role.rolname} is no superuser of PostgreSQL")


def check_redis_user(inspection: Inspection) -> Iterator[Evidence]:
    parts = urlsplit(inspection.settings.redis_url.get_secret_value())
    if not parts.password:
        yield gap("Redis asks for no password", f"Set one, and give it in {PREFIX}REDIS_URL.")
    elif parts.username in (None, "", "default"):
        advice = "Make the user of docs/security.md, who reaches our keys alone, and switch the user `default` off."
        where = " on this machine alone" if is_loopback(parts.hostname or "") else ""
        yield gap(f"the user `default` of Redis may give every command{where}", advice)
    else:
        yield met(f"Redis is used as {parts.username}, with a password")


def check_flower(inspection: Inspection) -> Iterator[Evidence]:
    settings = inspection.settings
    password = settings.flower_password
    if not settings.flower_read_only:
        yield gap(
            "whoever signs in to Flower may stop workers and send tasks to them",
            f"Leave {PREFIX}FLOWER_READ_ONLY unset.",
        )
    if password is None and settings.flower_auth != "basic":
        yield met(f"people sign in to Flower through {settings.flower_auth}, those alone that its settings name")
    elif password is None:
        yield met("Flower has no password in these settings, without which it does not start")
    elif len(password.get_secret_value()) < _SHORT_PASSWORD:
        advice = f"Set {PREFIX}FLOWER_PASSWORD to 32 random letters and digits."
        yield gap(f"Flower's password has fewer than {_SHORT_PASSWORD} characters", advice)
    else:
        yield met("Flower asks for a password, for its metrics as well")


def check_data_dir(inspection: Inspection) -> Iterator[Evidence]:
    """Of an embedded stack; of others the secrets are in the environment of their processes."""
    if inspection.settings.data_dir is None:
        yield met("secrets come in the environment of each process, which its own user alone can read")
        return
    data_dir = DataDir(inspection.settings.data_dir)
    private = (data_dir.secrets_file, data_dir.state_file, data_dir.logs, data_dir.blobs)
    opened = [path for path in private if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if opened:
        names = ", ".join(path.name for path in opened)
        yield gap(f"others may read {names} in {data_dir.root}", "Take their rights away (chmod go-rwx).")
    else:
        yield met(f"what is secret in {data_dir.root} is its owner's alone")


def _named(ids: Sequence[str]) -> str:
    rest = len(ids) - _MOST_NAMED
    return ", ".join(ids[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
