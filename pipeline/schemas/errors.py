"""The one shape of an error, OpenAI's."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong; all four keys are always there."""

    message: str
    type: str
    #: Name of the parameter that is to blame.
    param: str | None
    #: For programs; stable.
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody
