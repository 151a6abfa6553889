"""Runs `ryzanstein flower` with settings of a test's own, and asks it over HTTP."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from pipeline.processes import free_port, spawn, stop
from pipeline.settings import PREFIX, get_settings

PASSWORD = "open-sesame"


def get(url: str, password: str | None = PASSWORD) -> Any:
    request = urllib.request.Request(url)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"ryzanstein:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or "null")


def status(url: str, password: str | None, method: str = "GET") -> int:
    request = urllib.request.Request(url, method=method)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"ryzanstein:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def wait_for(condition: Callable[[], Any], limit: float = 30) -> Any:
    deadline = time.monotonic() + limit
    while True:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        assert time.monotonic() < deadline, f"still waiting after {limit} s"
        time.sleep(0.1)


class RunningFlower:
    """`ryzanstein flower` with these settings; `start` may be called again after `stop`."""

    def __init__(self, folder: Path, env: pytest.MonkeyPatch, **settings: str) -> None:
        port = settings.setdefault("port", str(free_port()))
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = folder / "flower.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._env = env
        self._set({"password": PASSWORD, **settings})
        env.setenv("FLOWER_UNAUTHENTICATED_API", "true")

    def _set(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            self._env.setenv(f"{PREFIX}FLOWER_{name.upper()}", value)
        get_settings.cache_clear()

    def start(self, **settings: str) -> None:
        self._set(settings)
        argv = [sys.executable, "-m", "pipeline.cli", "flower"]
        self.process = spawn(argv, log_path=self.log_path, env=os.environ)
        wait_for(lambda: status(f"{self.url}/healthcheck", None) == 200)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            assert self.process.returncode == 0, self.log()
            self.process = None

    def log(self) -> str:
        return self.log_path.read_text()
