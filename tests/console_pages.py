"""What tests of the console share: a person who has signed in, and what a page says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx2

_TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


@dataclass(frozen=True)
class Person:
    """A browser without scripts that is signed in."""

    http: httpx2.Client

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.http.get(path, **options)

    def page(self, path: str, status: int = 200) -> str:
        """The text of a page, without tags."""
        response = self.http.get(path)
        assert response.status_code == status, text_of(response)
        return text_of(response)

    @property
    def token(self) -> str:
        found = _TOKEN.search(self.http.get("/console/batches").text)
        assert found
        return found[1]

    def post(self, path: str, **fields: str) -> httpx2.Response:
        return self.http.post(path, data={"csrf_token": self.token, **fields})


def sign_in(address: str, key: str) -> Person:
    client = httpx2.Client(base_url=address, timeout=60)
    response = client.post("/console/sign-in", data={"key": key})
    assert response.status_code == 303, response.text
    return Person(client)


def text_of(response: httpx2.Response) -> str:
    """What a person reads, on one line."""
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    body = response.text[response.text.index("<main") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())
