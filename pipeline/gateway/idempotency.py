"""`Idempotency-Key`: every route that takes a POST takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import Depends, Header
from pydantic import WithJsonSchema

from pipeline.gateway.errors import invalid
from pipeline.jobs.idempotency import KeyedCall
from pipeline.tenancy.keys import Principal

#: Longest idempotency key.
_KEY_LENGTH: Final = 255
#: What the function below takes, as a description has it; it checks by itself, for the sake of its message.
_KEY_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string", "minLength": 1, "maxLength": _KEY_LENGTH, "pattern": "^[ -~]+$"}, {"type": "null"}]
}


def _idempotency_key(
    idempotency_key: Annotated[str | None, Header(), WithJsonSchema(_KEY_SCHEMA)] = None,
) -> str | None:
    """A name for this call, so that sending it again does nothing twice."""
    if idempotency_key is None:
        return None
    if not (idempotency_key.isascii() and idempotency_key.isprintable() and 0 < len(idempotency_key) <= _KEY_LENGTH):
        raise invalid(
            "Idempotency-Key", f"Invalid 'Idempotency-Key': it must be 1 to {_KEY_LENGTH} printable ASCII characters."
        )
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def keyed_call(caller: Principal, route: str, key: str | None, content: Mapping[str, Any]) -> KeyedCall | None:
    """The call as `answer_once` takes it; None where the client has not named it."""
    if key is None:
        return None
    return KeyedCall(tenant_id=caller.tenant_id, project_id=caller.project_id, route=route, key=key, content=content)
