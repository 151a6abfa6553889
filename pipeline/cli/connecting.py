"""What the client and admin commands talk to: a gateway, or a database; of a stack in a folder, or of the settings."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from pipeline.errors import UserError
from pipeline.ids import new_id

if TYPE_CHECKING:
    from openai import OpenAI
    from sqlalchemy.orm import Session

    from pipeline.tables import Tenant

DATA_DIR = typer.Option(
    None, "--data-dir", envvar="RYZANSTEIN_DATA_DIR", help="Folder of a running stack, whose addresses are used."
)
BASE_URL = typer.Option(None, "--base-url", help="Address of the gateway, ending in /v1. (default: setting BASE_URL)")
API_KEY = typer.Option(
    None, "--api-key", help="Key to use; RYZANSTEIN_API_KEY hides it from others. (default: setting API_KEY)"
)
TENANT = typer.Option(None, "--tenant", help="Only this tenant. (default: all)")
JSON = typer.Option(False, "--json", help="Print JSON.")

#: The client tries again after a failure that passes: a gateway that is being restarted, say.
_MAX_RETRIES = 4


@contextlib.contextmanager
def open_client(data_dir: Path | None, base_url: str | None, api_key: str | None) -> Iterator[OpenAI]:
    """The stock client of OpenAI. Its errors become UserErrors that say what to do."""
    import openai

    from pipeline.settings import get_settings

    if data_dir is not None:
        use_stack(data_dir)
    settings = get_settings()
    url = base_url or settings.base_url
    key = api_key or (settings.api_key.get_secret_value() if settings.api_key else "")
    if not key:
        raise UserError("No API key. Set RYZANSTEIN_API_KEY, or give --api-key, or --data-dir of a running stack.")
    is_local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    # A proxy that the environment names knows nothing of this machine's own ports.
    http_client = openai.DefaultHttpxClient(trust_env=not is_local)
    try:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=_MAX_RETRIES, http_client=http_client) as client:
            yield client
    except openai.AuthenticationError as error:
        raise UserError(f"The gateway at {url} refuses the key: {reason_of(error)}") from None
    except openai.APIStatusError as error:
        raise UserError(f"{reason_of(error)} (HTTP {error.status_code})") from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise UserError(
            f"Can't reach the gateway at {url}: {cause}. Is it running, and is the address right?"
        ) from None


def once() -> dict[str, str]:
    """Headers of a call that does nothing twice, however often the client tries it: its answer may have been lost."""
    return {"Idempotency-Key": new_id("call")}


def reason_of(error: Any) -> str:
    """The message of an error that the gateway answered with."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)


@contextlib.contextmanager
def open_database(data_dir: Path | None) -> Iterator[Session]:
    """A session in one transaction. A database that is away or not migrated becomes a UserError.

    So does a commit of which nobody knows whether it was done, such as that of a credit, which may be granted once.
    """
    from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError

    from pipeline.settings import get_settings
    from pipeline.tables.session import transaction

    if data_dir is not None:
        use_stack(data_dir)
    is_ending = False
    try:
        with transaction() as session:
            yield session
            is_ending = True
    except (InterfaceError, OperationalError):
        if is_ending:
            raise UserError(
                "PostgreSQL was lost at the end: if this was to change anything, it may or may not have been done. "
                "`ryzanstein audit log` shows what was; look before you do it again."
            ) from None
        url = urlsplit(get_settings().database_url.get_secret_value())
        raise UserError(
            f"Can't use PostgreSQL at {url.hostname}:{url.port}{url.path}. Set RYZANSTEIN_DATABASE_URL, or give "
            "--data-dir of a running stack; `ryzanstein doctor` says more."
        ) from None
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42P01":  # undefined table
            raise
        raise UserError("The database has no tables yet: run `ryzanstein migrate`.") from None


def find_tenant_id(session: Session, name: str | None) -> str | None:
    """The id of the tenant called `name`; None stands for all of them. Raises UnknownTenantError."""
    from pipeline.tenancy.tenants import find_tenant

    return None if name is None else find_tenant(session, name).id


def find_key_id(session: Session, tenant: Tenant, reference: str) -> str:
    """The id of a key of this tenant, by what `find_key` takes. Raises UnknownKeyError."""
    from pipeline.tenancy.keys import UnknownKeyError, find_key

    key = find_key(session, reference)
    if key.tenant_id != tenant.id:
        raise UnknownKeyError(f"The key is none of the tenant {tenant.name!r}.")
    return key.id


def use_stack(data_dir: Path) -> None:
    # Set for the processes of a stack too, whose other settings then are right as they are.
    if os.environ.get("RYZANSTEIN_DATA_DIR") == str(data_dir) and "RYZANSTEIN_DATABASE_URL" in os.environ:
        return
    from pipeline.stack.connect import use_stack

    use_stack(data_dir)


def read_text_file(path: Path) -> str:
    """The text of a file, or of stdin for `-`. Raises UserError."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise UserError(f"Can't read {path}: {reason}.") from None


def decimal_of(option: str, text: str) -> Decimal:
    """A number as an option gives it. Raises UserError."""
    try:
        return Decimal(text)
    except InvalidOperation:
        raise UserError(f"{option} is {text!r}: give a decimal number, such as 0.10.") from None


def moment_of(option: str, text: str | None) -> datetime | None:
    """A moment as an option gives it, in UTC unless it says otherwise; None for None. Raises UserError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} is {text!r}: give a moment, such as 2026-12-01 or 2026-12-01T08:00Z.") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
