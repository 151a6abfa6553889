from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import parse_url

from pipeline.errors import ConfigurationError
from pipeline.redis_urls import tls_options
from pipeline.settings import PREFIX, get_settings


def test_tls_verifies_certificate_and_host_unless_told_otherwise() -> None:
    verified = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}

    assert tls_options("rediss://user:word@redis:6380/0") == verified
    assert tls_options("rediss://redis?ssl_ca_certs=/ca.pem") == {**verified, "ssl_ca_certs": "/ca.pem"}
    assert tls_options("rediss://redis?ssl_check_hostname=false") == {**verified, "ssl_check_hostname": False}
    unverified = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert tls_options("rediss://redis?ssl_cert_reqs=none") == unverified
    assert tls_options("redis://:word@redis:6379/0") is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "unix:///run/redis.sock",
        "rediss://:hunter2@",
        "rediss://redis?ssl_ca_cert=hunter2",
        "rediss://redis?ssl_cert_reqs=hunter2",
        "rediss://redis?ssl_check_hostname=0",
        "redis://redis?ssl_ca_certs=hunter2",
        # A password that is not escaped: what is left of it is taken for a port, a parameter, or a host.
        "redis://user:hunter2/hunter2@redis:6379/0",
        "redis://redis:6379?hunter2=hunter2@redis",
        "redis://:hunter2?hunter2@redis:6379/0",
        "redis://[hunter2@redis:6379/0",
        "redis://user:p@hunter2/hunter2@redis:6379/0",
        "redis://user:12#hunter2@redis:6379/0",
        "redis://user:hunter2\N{FULLWIDTH NUMBER SIGN}@redis:6379/0",
    ],
)
def test_an_address_that_would_be_misread_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        tls_options(url)
    assert "hunter2" not in str(caught.value)


@given(st.text(st.sampled_from("ab12/?#@:%[]&=\\ \u2100é"), min_size=1, max_size=12))
def test_whatever_a_password_holds_the_host_is_the_right_one_or_the_address_is_refused(password: str) -> None:
    url = f"redis://user:{password}@redis.example:6379/0"
    try:
        assert tls_options(url) is None
    except ValueError:
        return
    read = parse_url(url)
    assert (read["host"], read["port"], read["db"]) == ("redis.example", 6379, 0)


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL"])
def test_such_an_address_is_a_wrong_setting(settings_env: pytest.MonkeyPatch, name: str) -> None:
    scheme = "redis" if name == "REDIS_URL" else "postgresql+psycopg"
    settings_env.setenv(PREFIX + name, f"{scheme}://user:hunter2/hunter2@host:6379/0")

    with pytest.raises(ConfigurationError, match=rf"{PREFIX}{name}: .* written as %2F") as caught:
        get_settings()
    assert "hunter2" not in str(caught.value)
