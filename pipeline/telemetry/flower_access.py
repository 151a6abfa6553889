"""Who may look at Flower: settings for its authentication, checked, and handlers for what it leaves open itself."""

from __future__ import annotations

import hmac
import os
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import tornado.web
from flower.utils.authentication import validate_auth_option
from flower.views.monitor import Healthcheck, Metrics

from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, Settings, get_settings

#: Flower's handler for each way to sign in, beside `basic`.
_PROVIDERS: Final = {
    "google": "flower.views.auth.GoogleAuth2LoginHandler",
    "github": "flower.views.auth.GithubLoginHandler",
    "gitlab": "flower.views.auth.GitLabLoginHandler",
    "okta": "flower.views.auth.OktaLoginHandler",
}
#: Where each of them reads whose server it is.
_SERVERS: Final = {
    "github": "FLOWER_GITHUB_OAUTH_DOMAIN",
    "gitlab": "FLOWER_GITLAB_OAUTH_DOMAIN",
    "okta": "FLOWER_OAUTH2_OKTA_BASE_URL",
}


def access_options(settings: Settings) -> dict[str, Any]:
    """Flower's options for how people sign in. Raises ConfigurationError, saying which setting is missing or wrong."""
    # It would open the API to everybody.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    if settings.flower_auth == "basic":
        password = password_of(settings)
        if not password:
            raise ConfigurationError(f"Flower needs a password: set {PREFIX}FLOWER_PASSWORD.")
        return {"basic_auth": [f"{settings.flower_user}:{password}"], "auth": "", "auth_provider": None}
    _check_oauth(settings)
    return {"basic_auth": [], "auth": settings.flower_oauth_emails, "auth_provider": _PROVIDERS[settings.flower_auth]}


def oauth_settings(settings: Settings) -> dict[str, Any]:
    """What tornado's OAuth wants to know of us; nothing without OAuth."""
    if settings.flower_auth == "basic" or settings.flower_oauth_client_secret is None:
        return {}
    return {
        "oauth": {
            "key": settings.flower_oauth_client_id,
            "secret": settings.flower_oauth_client_secret.get_secret_value(),
            "redirect_uri": settings.flower_oauth_redirect_url,
        }
    }


def tell_server(settings: Settings) -> None:
    """Say whose GitHub, GitLab or Okta it is, in the variables that Flower reads when its handlers are imported."""
    if settings.flower_oauth_server and (variable := _SERVERS.get(settings.flower_auth)):
        os.environ[variable] = settings.flower_oauth_server.rstrip("/")


def password_of(settings: Settings) -> str:
    """Empty where there is none."""
    return settings.flower_password.get_secret_value() if settings.flower_password else ""


def _check_oauth(settings: Settings) -> None:
    how = f"{PREFIX}FLOWER_AUTH={settings.flower_auth}"
    wanted: Mapping[str, Any] = {
        "CLIENT_ID": settings.flower_oauth_client_id,
        "CLIENT_SECRET": settings.flower_oauth_client_secret and settings.flower_oauth_client_secret.get_secret_value(),
        "REDIRECT_URL": settings.flower_oauth_redirect_url,
        # Without it, whoever has an account there could sign in.
        "EMAILS": settings.flower_oauth_emails,
    }
    if settings.flower_auth == "okta":
        wanted = {**wanted, "SERVER": settings.flower_oauth_server}
    if missing := [f"{PREFIX}FLOWER_OAUTH_{name}" for name, value in wanted.items() if not value]:
        raise ConfigurationError(f"{how} needs {', '.join(missing)}: docs/settings.md says what they are.")
    emails = settings.flower_oauth_emails
    if not validate_auth_option(emails) or not all("@" in part for part in emails.split("|")):
        raise ConfigurationError(
            f"{PREFIX}FLOWER_OAUTH_EMAILS is {emails!r}, which names no one: give an address, several with | between, "
            "or .*@example.com for all of a domain."
        )
    redirect = urlsplit(settings.flower_oauth_redirect_url)
    is_here = redirect.scheme == "http" and redirect.hostname in ("127.0.0.1", "::1", "localhost")
    if not (redirect.scheme == "https" or is_here) or not redirect.path.rstrip("/").endswith("/login"):
        raise ConfigurationError(
            f"{PREFIX}FLOWER_OAUTH_REDIRECT_URL is {settings.flower_oauth_redirect_url!r}: it begins with https:// (or "
            "is this machine's) and ends with /login, such as https://flower.example.com/login."
        )


def has_password(authorization: str, settings: Settings) -> bool:
    """Whether this header carries Flower's user and password."""
    password = password_of(settings)
    kind, _, encoded = authorization.partition(" ")
    if not password or kind != "Basic":
        return False
    try:
        given = b64decode(encoded, validate=True)
    except ValueError:
        return False
    return hmac.compare_digest(given, f"{settings.flower_user}:{password}".encode())


def is_from_here(remote_ip: str | None) -> bool:
    """Whether the other end of a connection is on this machine."""
    try:
        return ip_address(remote_ip or "").is_loopback
    except ValueError:  # a socket of the file system
        return False


class GuardedMetrics(Metrics):  # type: ignore[misc]
    """`/metrics`, which Flower shows to everybody, for who has the password or has signed in."""

    def prepare(self) -> None:
        if has_password(self.request.headers.get("Authorization", ""), get_settings()):
            return
        options = self.application.options
        if options.basic_auth or not self.current_user:
            raise tornado.web.HTTPError(401)


class GuardedHealthcheck(Healthcheck):  # type: ignore[misc]
    """`/healthcheck`, for the same, and for whoever is on this machine: it says OK, and nothing else."""

    def prepare(self) -> None:
        is_known = has_password(self.request.headers.get("Authorization", ""), get_settings())
        if not is_known and not is_from_here(self.request.remote_ip):
            raise tornado.web.HTTPError(401)
