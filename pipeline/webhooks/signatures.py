"""Secrets and signatures of webhooks, after the specification at https://www.standardwebhooks.com.

A secret is derived from the signing key of the installation, the endpoint's id and a number: whoever reads the database
learns no secret, and every process that has the key knows all of them. A new signing key means new secrets.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from pipeline.signing import SigningKey

_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
#: Characters at the end of a secret that are shown to tell it from others.
_HINT_LENGTH: Final = 4


def secret_of(key: SigningKey, endpoint_id: str, generation: int) -> str:
    """`whsec_` and 32 bytes in base64."""
    raw = key.derive(f"webhook:{endpoint_id}:{generation}", _SECRET_BYTES)
    return _PREFIX + base64.b64encode(raw).decode()


def hint_of(secret: str) -> str:
    """What may be shown of a secret."""
    return f"{_PREFIX}…{secret[-_HINT_LENGTH:]}"


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """The headers that a receiver verifies `body` by: one of its signatures must be by the secret that it knows.

    `timestamp` is of this attempt, in Unix seconds.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{_sign(secret, content)}" for secret in secrets),
    }


def _sign(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
