from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_flower import RunningFlower
from sqlalchemy import Engine


@pytest.fixture
def make_flower_process(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., RunningFlower]]:
    made: list[RunningFlower] = []

    def make(**settings: str) -> RunningFlower:
        made.append(RunningFlower(tmp_path, settings_env, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()
