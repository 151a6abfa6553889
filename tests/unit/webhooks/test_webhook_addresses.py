from __future__ import annotations

import pytest

from pipeline.settings import Settings
from pipeline.webhooks.addresses import ForbiddenUrlError, allowed_address, check_url, resolve

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # what clouds tell their machines
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "::",
    "::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",  # behind a translator of one's own (RFC 8215)
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused_in_whatever_form(address: str) -> None:
    with pytest.raises(ForbiddenUrlError, match="not public") as refused:
        allowed_address([address], Settings())
    assert address not in str(refused.value)
    with pytest.raises(ForbiddenUrlError):
        allowed_address(["93.184.215.14", address], Settings())


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert allowed_address([address, "8.8.8.8"], Settings()) == address


def test_what_the_operator_names_is_allowed_and_nothing_beside() -> None:
    settings = Settings(webhook_private_networks="10.1.0.0/16, fd00::/8")
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert allowed_address([address], settings) == address
    for address in ("10.2.0.1", "127.0.0.1", "::1", "fc00::1"):
        with pytest.raises(ForbiddenUrlError):
            allowed_address([address], settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "localhost", "0"])
def test_loopback_is_found_out_however_it_is_written(host: str) -> None:
    with pytest.raises(ForbiddenUrlError):
        allowed_address(resolve(host, 443), Settings())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https"),
        ("ftp://example.com/", "no URL"),
        ("file:///etc/passwd", "no URL"),
        ("https://", "no URL"),
        ("https:///path", "no URL"),
        ("https://example.com:99999/", "no URL"),
        ("https://example.com:0/", "no URL"),
        ("https://[::1", "no URL"),
        ("example.com", "no URL"),
        ("https://user:secret@example.com/", "no user"),
        ("https://user@example.com/", "no user"),
        ("https://example.com/#x", "behind #"),
        ("https://exa mple.com/", "ASCII"),
        ("https://example.com\\@127.0.0.1/", "ASCII"),
        ("https://ex\u00e4mple.com/", "ASCII"),
        ("https://example.com/\r\nhost: x", "ASCII"),
        ("https://example.com/" + "x" * 2_048, "too long"),
    ],
)
def test_a_strange_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ForbiddenUrlError, match=reason):
        check_url(url, Settings())


def test_plain_http_is_allowed_where_the_operator_says_so() -> None:
    assert check_url("http://example.com:8080/a?b=c", Settings(webhook_http=True)).port == 8080
    assert check_url("https://example.com/a?b=c", Settings()).hostname == "example.com"


def test_networks_that_are_none_are_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        Settings(webhook_private_networks="10.0.0.0/8,home")
