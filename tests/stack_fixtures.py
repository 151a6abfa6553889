"""Fixtures of tests that run whole stacks, for their `conftest.py` to import."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_folders import random_llama
from stacks import RunningStack

__all__ = ["make_stack", "stack_folder", "tiny_model"]


@pytest.fixture(scope="session")
def stack_folder() -> Iterator[Path]:
    """Not below pytest's own folder, which another run closes to PostgreSQL where we are root."""
    with tempfile.TemporaryDirectory(prefix="ryzanstein-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def tiny_model(stack_folder: Path) -> Path:
    """A Llama of random weights, called `tiny`."""
    return random_llama(stack_folder / "models" / "tiny")


@pytest.fixture
def make_stack(stack_folder: Path, tiny_model: Path) -> Iterator[Callable[..., RunningStack]]:
    """Makes stacks (not started) of a test's own: `make_stack("--tp", "2", RYZANSTEIN_LOG_LEVEL="DEBUG")`."""
    made: list[RunningStack] = []

    def make(*options: str, model: Path = tiny_model, **env: str) -> RunningStack:
        folder = Path(tempfile.mkdtemp(dir=stack_folder)) / "data"
        made.append(RunningStack(folder, model, options, env))
        return made[-1]

    yield make
    failures = []
    for one in made:
        try:
            one.end()
        except AssertionError as error:
            failures.append(error)
        shutil.rmtree(one.data_dir.parent, ignore_errors=True)
    assert not failures, failures
