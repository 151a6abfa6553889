"""The errors of this package."""

from __future__ import annotations

#: What a message keeps of its beginning, which says what is wrong, and of its end, which says what to do.
_KEPT_CHARS = (500, 200)


class ModelError(Exception):
    """A model can't be used; the message names the file, the field or the tensor, and says what would do.

    It quotes foreign files, in which a name can have any length: the middle of a long message is left out.
    """

    def __init__(self, message: str) -> None:
        start, end = _KEPT_CHARS
        super().__init__(message if len(message) <= start + end else f"{message[:start]} … {message[-end:]}")


class InvalidConfig(ModelError):
    """A configuration file is broken: a field is missing, of the wrong type or out of range."""


class UnsupportedModel(ModelError):
    """A model that is sound but not one of ours: another family, quantised weights, experts, another activation."""


class CheckpointError(ModelError):
    """The weights can't be read: a file or a tensor is missing, of the wrong shape, truncated or quantised."""
