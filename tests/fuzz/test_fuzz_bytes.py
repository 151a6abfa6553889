"""Requests that no client would send, to a running gateway: each is answered, and never by a 500."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx2
from budget import Budget
from hypothesis import strategies as st
from running_gateways import error_of
from served_gateways import Served

PATHS = st.sampled_from(
    ["/v1/files", "/v1/batches", "/v1/models", "/v1/files/x", "/v1/batches/x/cancel", "/healthz", "/openapi.json", "/"]
)
METHODS = st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"])
QUERIES = st.binary(max_size=20) | st.sampled_from([b"limit=1e9", b"limit=-1", b"after=", b"after=\0", b"order=x"])
ODD_BYTES = st.binary(max_size=40) | st.sampled_from(
    [
        b'{"input_file_id":"\\ud800","endpoint":"\\ud800","completion_window":"\\udfff"}',
        b'{"\\ud800":1}',
        b'{"metadata":{"\\ud800":"\\ud800"}}',
        b"[" * 20_000,
        b"9" * 5000,
        b'{"a":' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xff\0"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=x''%ff\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: " + b"form-data; " * 300 + b"\r\n\r\n",
        b"--b" * 100,
    ]
)
CONTENT_TYPES = st.sampled_from(
    [
        "application/json", "multipart/form-data; boundary=b", "multipart/form-data", "text/plain", "application/json;",
        "multipart/form-data; boundary=" + "b" * 300, "multipart/form-data; boundary*=x''%ff", "\xff", "",
    ]
)  # fmt: skip
#: Latin-1, without what ends a header.
HEADER_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
HEADERS = st.dictionaries(
    st.sampled_from(["idempotency-key", "on-invalid", "x-on-invalid", "x-request-id", "range", "accept", "cookie"]),
    HEADER_VALUES,
    max_size=3,
)


@st.composite
def odd_requests(draw: st.DrawFn) -> dict[str, Any]:
    """What httpx2 sends as it is."""
    path, query = draw(PATHS) + _quoted(draw(st.binary(max_size=12) | st.just(b""))), _quoted(draw(QUERIES))
    headers = {name.encode(): value.strip().encode("latin-1") for name, value in draw(HEADERS).items()}
    body = draw(ODD_BYTES | st.none())
    if body is not None:
        headers[b"content-type"] = draw(CONTENT_TYPES).encode("latin-1")
    return {"method": draw(METHODS), "url": f"{path}?{query}", "content": body, "headers": headers}


def _quoted(data: bytes) -> str:
    return quote(data, safe="=&")


def test_no_bytes_make_it_fail(served: Served, budget: Budget) -> None:
    def one(sent: dict[str, Any]) -> None:
        response = http.request(**sent)
        assert response.status_code < 500, (response.status_code, response.text)
        if response.status_code >= 400 and sent["method"] != "HEAD":
            error_of(response)

    with httpx2.Client(base_url=served.address, headers=served.headers, timeout=60) as http:
        budget.run(one, sent=odd_requests())
