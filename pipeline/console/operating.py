"""What operators alone may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from pipeline.console.signing_in import SignedIn
from pipeline.gateway.errors import ApiError
from pipeline.tenancy.console_sessions import Viewer


def _operator(viewer: SignedIn) -> Viewer:
    if not viewer.is_operator:
        raise ApiError(
            403,
            "This is for operators. `ryzanstein keys create --operator` makes a key that is one.",
            code="operators_only",
        )
    return viewer


#: Who has signed in with an operator's key; others see a page of 403.
Operator = Annotated[Viewer, Depends(_operator)]
