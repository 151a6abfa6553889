"""Redis over TLS: every client of ours verifies who answers, and says who it is where that is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from kombu.exceptions import OperationalError
from secure_servers import HOST, SecureServer, redis_with_tls, secure_redis

from pipeline.celery import queue_lengths
from pipeline.checks.findings import Verdict
from pipeline.checks.redis_server import check_redis
from pipeline.settings import PREFIX, get_settings
from pipeline.tenancy.keys import CallLimits, Principal
from pipeline.tenancy.rate_limits import RateLimits

Use = Callable[[str], None]
#: As a process of the service would: with the app's own configuration, which a process reads once.
_ASK = "from pipeline.celery import queue_lengths; print(queue_lengths(['control']))"


@pytest.fixture
def use(settings_env: pytest.MonkeyPatch) -> Use:
    """Makes an address that of the settings."""

    def use(url: str) -> None:
        settings_env.setenv(PREFIX + "REDIS_URL", url)
        get_settings.cache_clear()

    return use


def answers() -> bool:
    """Whether Redis answers redis-py, by which health checks go and calls are counted, and Kombu, by which messages go:
    all or none."""
    caller = Principal(tenant_id="t", api_key_id="k", tenant_limits=CallLimits(9, 0))
    is_counted = bool(RateLimits(get_settings()).count_request(caller).windows)
    (redis,) = [finding for finding in check_redis() if finding.subject == "redis"]
    try:
        queue_lengths(["control"])
    except OperationalError:
        assert redis.verdict is Verdict.FAILED
        assert not is_counted
        assert re.search(r"\(.*: .+\)$", redis.detail), "an operator is told why"
        return False
    assert redis.verdict is Verdict.OK
    assert is_counted
    return True


def test_only_a_server_whose_certificate_holds_is_talked_to(
    redis_over_tls: SecureServer, authority: Authority, stranger: Authority, use: Use
) -> None:
    def address(host: str, parameters: str) -> str:
        return f"rediss://:{redis_over_tls.password}@{host}:{redis_over_tls.tls_port}/0?{parameters}"

    use(address(HOST, f"ssl_ca_certs={authority.path}"))
    assert answers()
    use(address(HOST, f"ssl_ca_certs={stranger.path}"))
    assert not answers(), "a certificate of a stranger was taken"
    use(address("127.0.0.1", f"ssl_ca_certs={authority.path}"))
    assert not answers(), "the certificate of another host was taken"
    use(address("127.0.0.1", f"ssl_ca_certs={authority.path}&ssl_check_hostname=false"))
    assert answers()
    use(f"redis://:{redis_over_tls.password}@{HOST}:{redis_over_tls.tls_port}/0")
    assert not answers(), "the password was sent without TLS"


def test_an_address_without_parameters_verifies_too(redis_over_tls: SecureServer, authority: Authority) -> None:
    """Kombu by itself would not, and would send the password to whoever answers."""
    url = f"rediss://:{redis_over_tls.password}@{HOST}:{redis_over_tls.tls_port}/0"

    def ask(**settings: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, PREFIX + "REDIS_URL": url, **settings}
        return subprocess.run([sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, timeout=60)

    refused = ask()
    assert refused.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert redis_over_tls.password not in refused.stderr
    # The authorities that OpenSSL trusts without being told, of which ours is one now.
    assert ask(SSL_CERT_FILE=str(authority.path)).stdout == "{'control': 0}\n"


@pytest.mark.parametrize("whose", ["its own", "of a front"])
def test_a_server_may_ask_clients_for_a_certificate(
    whose: str, servers_folder: Path, authority: Authority, certificate: Certificate, use: Use
) -> None:
    program = redis_with_tls() if whose == "its own" else None
    if whose == "its own" and program is None:
        pytest.skip("no redis-server or valkey-server on the PATH was built with TLS")
    mine = authority.issue("client")
    folder = servers_folder / f"redis-clients-{whose.replace(' ', '-')}"
    with secure_redis(folder, authority, certificate, program=program, wants_clients=True) as server:
        url = f"rediss://:{server.password}@{HOST}:{server.tls_port}/0?ssl_ca_certs={authority.path}"
        use(url)
        assert not answers()
        use(f"{url}&ssl_certfile={mine.path}&ssl_keyfile={mine.key}")
        assert answers()
