"""Whole stacks: one that all tests share, and a factory for tests that break theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from browsers import browser, open_page
from stack_fixtures import make_stack, stack_folder, tiny_model
from stacks import RunningStack

__all__ = ["browser", "make_stack", "open_page", "stack_folder", "tiny_model"]


@pytest.fixture(scope="session")
def stack(stack_folder: Path, tiny_model: Path) -> Iterator[RunningStack]:
    """A running stack with the echo engine, shared by all tests that do it no harm."""
    shared = RunningStack(stack_folder / "shared", tiny_model, ("--engine", "echo"))
    try:
        shared.up()
        yield shared
    finally:
        shared.end()


@pytest.fixture
def client(stack: RunningStack) -> openai.OpenAI:
    return stack.client()
