"""Where webhooks may go: to public addresses, and to those private ones that the operator has named.

A tenant chooses the URL, and the requests come from inside: so the host is resolved once, every address that it has is
judged, and the connection goes to one of these, not to what a second look-up might say.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import PipelineError
from pipeline.settings import Settings

MAX_URL_LENGTH: Final = 2_048
_PORTS: Final = {"https": 443, "http": 80}

#: IPv6 addresses that stand for IPv4 ones behind a translator (RFC 6052).
_NAT64: Final = IPv6Network("64:ff9b::/96")

Address = IPv4Address | IPv6Address


class ForbiddenUrlError(PipelineError):
    """Webhooks can't be sent to this URL."""


def check_url(url: str, settings: Settings) -> SplitResult:
    """The parts of a URL that looks right; what its host is, nobody asks yet. Raises ForbiddenUrlError."""
    if len(url) > MAX_URL_LENGTH:
        raise ForbiddenUrlError(f"The URL is too long: it may have {MAX_URL_LENGTH} characters.")
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise ForbiddenUrlError("The URL may have printable ASCII characters alone; escape others, as %20.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ForbiddenUrlError("This is no URL: give one such as https://example.com/hooks.") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise ForbiddenUrlError("This is no URL: give one such as https://example.com/hooks.")
    if parts.scheme == "http" and not settings.webhook_http:
        raise ForbiddenUrlError("The URL must begin with https://.")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenUrlError("The URL may hold no user and no password: check the signature instead.")
    if parts.fragment:
        raise ForbiddenUrlError("The URL may have no part behind #: nobody would receive it.")
    return parts


def port_of(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def allowed_address(found: Iterable[str], settings: Settings) -> str:
    """One of the addresses that a host has, all of which are allowed. Raises ForbiddenUrlError."""
    addresses = list(dict.fromkeys(found))
    networks = private_networks(settings)
    for address in addresses:
        if not _is_allowed(ipaddress.ip_address(address.partition("%")[0]), networks):
            # Not which: a tenant has no business with the addresses in here.
            raise ForbiddenUrlError(
                "The host has an address that is not public. Use another, or ask the operator to allow its network."
            )
    if not addresses:
        raise ForbiddenUrlError("The host has no address.")
    return addresses[0]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, however it is written: `2130706433` is 127.0.0.1 too. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def private_networks(settings: Settings) -> list[IPv4Network | IPv6Network]:
    """Those that the operator has named."""
    names = settings.webhook_private_networks.split(",")
    return [ipaddress.ip_network(name.strip()) for name in names if name.strip()]


def _is_allowed(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Of all that an address stands for."""
    networks = list(networks)
    return all(
        _is_public(meant) or any(meant.version == net.version and meant in net for net in networks)
        for meant in _meant(address)
    )


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and (address.is_site_local or address.is_reserved):
        return False  # reserved: what others than a public network may give a meaning, such as translators of one's own
    return address.is_global and not address.is_multicast


def _meant(address: Address) -> Iterator[Address]:
    """An address, or the IPv4 addresses that it holds: mapped ones, and those behind a translator."""
    if isinstance(address, IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield IPv4Address(address.packed[-4:])
    elif address.sixtofour is not None:
        yield address.sixtofour
    else:
        yield address
