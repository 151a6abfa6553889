from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_workers import Start
from seeds import SeededTenant, seed_model, seed_tenant
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.settings import PREFIX


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return byte_level(tmp_path / "tiny")


@pytest.fixture
def start(tenant: SeededTenant, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Starts groups; the log of the last one is in `tmp_path / "worker.log"`."""
    processes: list[subprocess.Popen[str]] = []

    def run(model: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
        env = {**os.environ, **{PREFIX + name.upper(): value for name, value in settings.items()}}
        with (tmp_path / "worker.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", str(model), "--engine", "echo", *options],
                env=env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()
