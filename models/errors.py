"""The errors of this package."""

from __future__ import annotations


class ModelError(Exception):
    """A model can't be used; the message names the file, the field or the tensor, and says what would do."""


class InvalidConfig(ModelError):
    """A configuration file is broken: a field is missing, of the wrong type or out of range."""


class UnsupportedModel(ModelError):
    """A model that is sound but not one of ours: another family, quantised weights, experts, another activation."""


class CheckpointError(ModelError):
    """The weights can't be read: a file or a tensor is missing, of the wrong shape, truncated or quantised."""
