"""Looks for secrets where nobody should find them: command lines, Redis, Flower, and what another user can read."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError

import redis


class Watcher:
    """Looks again and again, in a thread of its own, and keeps what it has seen."""

    def __init__(self, look: Callable[[], Iterable[bytes]], every_seconds: float) -> None:
        self._look = look
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: set[bytes] = set()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.seen.update(self._look())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()


def command_lines() -> Iterator[bytes]:
    """The command lines and names of all processes of this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "comm"):
            with contextlib.suppress(OSError):
                yield (folder / name).read_bytes()


class RedisTraffic:
    """Every command that Redis is given, as MONITOR tells them, and the bodies of messages as they are read."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._is_listening = threading.Event()
        self._mark = os.urandom(8).hex()
        self.commands: list[bytes] = []

    def _watch(self) -> None:
        with redis.Redis.from_url(self._url) as client, client.monitor() as monitor:
            self._is_listening.set()
            for command in monitor.listen():
                if self._mark in command["command"]:
                    return
                text = command["command"]
                self.commands.append(text.encode())
                # Celery's messages and events are in base64.
                self.commands += map(base64.b64decode, re.findall(r'\\?"body\\?": \\?"([A-Za-z0-9+/=]+)', text))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_listening.wait(60)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.echo(self._mark)
        self._thread.join()


def redis_content(url: str) -> bytes:
    """Every key of Redis with what it holds."""
    readers = {
        b"string": lambda client, key: [client.get(key)],
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
        b"hash": lambda client, key: client.hgetall(key).items(),
        b"zset": lambda client, key: client.zrange(key, 0, -1),
        b"none": lambda client, key: [],  # gone since
    }
    found: list[Any] = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            found.append((key, *readers[client.type(key)](client, key)))
    return repr(found).encode()


class Flower:
    """Its pages and its API, as a browser with the password sees them."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Basic {self._login}"})
        try:
            with self._opener.open(request, timeout=30) as response:
                return bytes(response.read())
        except HTTPError as error:
            return error.read()

    def crawl(self) -> Iterator[tuple[str, bytes]]:
        """Every page that the pages link to, and what its API says of workers and tasks."""
        waiting = ["/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers?refresh=1", "/api/tasks"]
        waiting += ["/api/queues/length", "/api/task/types"]
        seen = set(waiting)
        while waiting:
            path = waiting.pop(0)
            page = self.get(path)
            yield path, page
            links = {link.decode() for link in re.findall(rb'href="(/(?:worker|task)/[^"]+)"', page)}
            links |= {f"/task/{uuid.decode()}" for uuid in re.findall(rb'"uuid": "([0-9a-f-]{36})"', page)}
            waiting += sorted(links - seen)
            seen |= links


def holding(needles: Iterable[bytes], haystack: Iterable[bytes]) -> list[bytes]:
    """The pieces that hold any of the needles."""
    wanted = list(needles)
    return [piece for piece in haystack if any(needle in piece for needle in wanted)]


def found_by_another_user(needles: Iterable[bytes], *paths: Path) -> list[str]:
    """Files below `paths`, and of /proc, in which the user `nobody` of this machine finds any of the needles."""
    nobody = pwd.getpwnam("nobody")
    places = [*map(str, paths), *map(str, Path("/proc").glob("[0-9]*/environ"))]
    done = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "--text", "--no-messages", "-F", "-f", "-", "--", *places],
        input=b"\n".join(needles),
        capture_output=True,
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    return done.stdout.decode().split("\n")[:-1]
