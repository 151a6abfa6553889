"""The root of this package's errors."""

from __future__ import annotations


class PipelineError(Exception):
    """Something in the pipeline failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class UserError(PipelineError):
    """What was asked can't be done; the message says what to do. The command line shows it without a traceback."""


class ConfigurationError(UserError):
    """A setting is wrong."""
