"""Signing in to Flower through OAuth, against a server that speaks it as Okta does."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from pydantic import SecretStr
from running_flower import PASSWORD, RunningFlower, status

from pipeline.errors import ConfigurationError
from pipeline.processes import free_port
from pipeline.settings import Settings
from pipeline.telemetry.flower_access import access_options, is_from_here

#: All that OAuth needs.
WHOLE = {
    "flower_auth": "okta",
    "flower_oauth_client_id": "flower-of-ours",
    "flower_oauth_client_secret": SecretStr("hush"),
    "flower_oauth_redirect_url": "https://flower.example.com/login",
    "flower_oauth_emails": ".*@example.com",
    "flower_oauth_server": "https://example.okta.com/oauth2/default",
}


class Provider:
    """Knows one person, whose address is `email`."""

    def __init__(self) -> None:
        self.email = "ada@example.com"
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                if asked.path == "/v1/authorize":
                    query = {name: values[0] for name, values in parse_qs(asked.query).items()}
                    self.send_response(302)
                    back = urlencode({"code": "sesame", "state": query["state"]})
                    self.send_header("Location", f"{query['redirect_uri']}?{back}")
                    self.end_headers()
                else:
                    assert self.headers["Authorization"] == "Bearer granted"
                    self._answer({"email": provider.email, "email_verified": True})

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                is_right = (form["code"], form["client_secret"]) == (["sesame"], ["hush"])
                self._answer({"access_token": "granted" if is_right else "refused"})

            def _answer(self, body: dict[str, object]) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def visit(url: str) -> int:
    """The status of the page that somebody without a session ends up on; redirects and cookies are followed."""
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar()))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=30) as page:
            assert urlsplit(page.url).netloc == urlsplit(url).netloc
            return int(page.status)
    except HTTPError as error:
        return error.code


def test_only_the_addresses_of_the_settings_get_in_and_the_password_is_for_metrics_alone(
    make_flower_process: Callable[..., RunningFlower], provider: Provider
) -> None:
    port = free_port()
    flower = make_flower_process(
        port=str(port),
        auth="okta",
        oauth_client_id="flower-of-ours",
        oauth_client_secret="hush",
        oauth_redirect_url=f"http://127.0.0.1:{port}/login",
        oauth_emails=".*@example.com",
        oauth_server=provider.url,
    )

    assert visit(f"{flower.url}/workers") == 200
    provider.email = "eve@elsewhere.com"
    assert visit(f"{flower.url}/workers") == 403

    # It is no way to sign in: whoever gives it is sent to the provider, and comes back as nobody.
    for path in ("/workers", "/tasks", "/api/workers", "/api/tasks"):
        assert status(flower.url + path, PASSWORD) == 403, path
    assert status(f"{flower.url}/metrics", None) == 401
    assert status(f"{flower.url}/metrics", PASSWORD) == 200
    assert status(f"{flower.url}/api/worker/shutdown/control@here", PASSWORD, "POST") == 403


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"flower_oauth_client_id": ""}, "needs RYZANSTEIN_FLOWER_OAUTH_CLIENT_ID"),
        ({"flower_oauth_client_secret": None}, "needs RYZANSTEIN_FLOWER_OAUTH_CLIENT_SECRET"),
        ({"flower_oauth_redirect_url": ""}, "needs RYZANSTEIN_FLOWER_OAUTH_REDIRECT_URL"),
        ({"flower_oauth_emails": ""}, "needs RYZANSTEIN_FLOWER_OAUTH_EMAILS"),
        ({"flower_oauth_server": ""}, "needs RYZANSTEIN_FLOWER_OAUTH_SERVER"),
        ({"flower_oauth_emails": ".*@.*"}, "names no one"),
        ({"flower_oauth_emails": "ada@example.com|eve"}, "names no one"),
        ({"flower_oauth_redirect_url": "http://flower.example.com/login"}, "begins with https"),
        ({"flower_oauth_redirect_url": "https://flower.example.com/"}, "ends with /login"),
    ],
)
def test_oauth_that_lets_in_nobody_or_everybody_is_refused_at_the_start(
    settings_env: pytest.MonkeyPatch, changed: dict[str, object], said: str
) -> None:
    assert access_options(Settings(**WHOLE))["auth"] == ".*@example.com"

    with pytest.raises(ConfigurationError, match=said):
        access_options(Settings(**{**WHOLE, **changed}))


def test_only_this_machine_is_here() -> None:
    assert [is_from_here(ip) for ip in ("127.0.0.1", "::1", "10.0.0.1", "2001:db8::1", "", None)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
