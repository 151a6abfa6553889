"""Stacks to watch."""

from __future__ import annotations

from stack_fixtures import make_stack, stack_folder, tiny_model

__all__ = ["make_stack", "stack_folder", "tiny_model"]
