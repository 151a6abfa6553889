"""Addresses of Redis, and what they say of TLS: in the words that redis-py and Kombu both read."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

#: Parameters of `rediss://…?…`. The first three are files in PEM.
_PARAMETERS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_VERIFY_MODES: Final = {"required": True, "none": False}
_WORDS: Final = {"true": True, "false": False}


def tls_options(url: str) -> dict[str, Any] | None:
    """How to talk TLS to the Redis at `url`; None stands for no TLS.

    The server's certificate is verified, the host's name in it too, unless the URL says otherwise: Kombu by itself
    takes any certificate where the URL has no parameter. Raises ValueError, whose text repeats nothing of the URL:
    what is misread there may be part of a password.
    """
    # The port comes first: what `urlsplit` can't read at all it repeats in its error.
    if not has_readable_port(url) or not _is_address(parts := urlsplit(url)):
        raise ValueError(
            "give an address of the form rediss://USER:PASSWORD@HOST:PORT/0, or redis://… for one without TLS; "
            "in the password, any of / ? # @ : % is written as %2F, and so on"
        )
    given = parse_qsl(parts.query, keep_blank_values=True)
    if unknown := [name for name, _ in given if name not in _PARAMETERS]:
        raise ValueError(f"it has {len(unknown)} unknown parameters; known are {', '.join(_PARAMETERS)}")
    if parts.scheme == "redis":
        if given:
            raise ValueError(f"{given[0][0]} belongs to rediss://, and this address says redis://, which has no TLS")
        return None
    options: dict[str, str] = dict(given)
    is_verified = _one_of(_VERIFY_MODES, options, "ssl_cert_reqs", "required")
    is_host_checked = is_verified and _one_of(_WORDS, options, "ssl_check_hostname", "true")
    return {
        **options,
        "ssl_cert_reqs": "required" if is_verified else "none",
        "ssl_check_hostname": is_host_checked,
    }


def _is_address(parts: SplitResult) -> bool:
    """A host, and at most the number of a database after it: else a password ended too early."""
    is_redis = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
    return is_redis and re.fullmatch(r"/?|/[0-9]+", parts.path) is not None and not parts.fragment


def has_readable_port(url: str) -> bool:
    """False where what stands for a port is no number: most often part of a password that ended too early."""
    try:
        urlsplit(url).port  # noqa: B018  reading it is the test
    except ValueError:
        return False
    return True


def _one_of(values: dict[str, bool], options: dict[str, str], name: str, default: str) -> bool:
    word = options.get(name, default)
    if word not in values:
        raise ValueError(f"{name} must be one of {', '.join(values)}")
    return values[word]
