"""Scripts and styles: our own, and those of Tabler and ApexCharts from the package that brings them.

Only what is named here is served, each under the hash of its content, so that a browser keeps it for good.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.errors import ConfigurationError

router = APIRouter()

_OWN: Final = Path(__file__).parent / "static"
_CSS: Final = "text/css; charset=utf-8"
_JS: Final = "text/javascript; charset=utf-8"
#: By name: where it is below its folder, and what it is.
_OWN_FILES: Final[Mapping[str, str]] = {"console.css": _CSS, "console.js": _JS, "theme.js": _JS, "charts.js": _JS}
_VENDOR_FILES: Final[Mapping[str, str]] = {
    "css/vendor/tabler.min.css": _CSS,
    "js/vendor/apexcharts.min.js": _JS,
}
#: The address changes with the content.
_FOR_GOOD: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _Asset:
    content: bytes
    packed: bytes
    kind: str
    digest: str


def asset_url(name: str) -> str:
    """Of `console.css`, or of `vendor/css/vendor/tabler.min.css`."""
    return f"/console/static/{_read(name).digest}/{name}"


@router.get("/static/{digest}/{name:path}", include_in_schema=False)
def get_asset(request: Request, digest: str, name: str) -> Response:
    """Nothing in it is a secret: it is for those who have not signed in as well."""
    if name not in _OWN_FILES and name.removeprefix("vendor/") not in _VENDOR_FILES:
        return Response(status_code=404)
    asset = _read(name)
    # A page of the version before may still ask for what it knew; it gets what there is, and asks again next time.
    headers = {"cache-control": _FOR_GOOD if digest == asset.digest else "no-cache", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, media_type=asset.kind, headers={**headers, "content-encoding": "gzip"})
    return Response(asset.content, media_type=asset.kind, headers=headers)


@lru_cache(maxsize=32)
def _read(name: str) -> _Asset:
    if name.startswith("vendor/"):
        part = name.removeprefix("vendor/")
        kind, path = _VENDOR_FILES[part], _vendor_folder() / part
    else:
        kind, path = _OWN_FILES[name], _OWN / name
    content = path.read_bytes()
    return _Asset(content, gzip.compress(content, mtime=0), kind, hashlib.sha256(content).hexdigest()[:16])


@lru_cache(maxsize=1)
def _vendor_folder() -> Path:
    """Found without importing the package, of which nothing runs."""
    found = importlib.util.find_spec("starlette_admin")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "The package starlette-admin is missing, which brings the console's style. Install it."
        )
    return Path(found.origin).parent / "static"
