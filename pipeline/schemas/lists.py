"""A page of a list, as OpenAI's cursor pages are."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

T = TypeVar("T", bound=BaseModel)


class ListPage(BaseModel, Generic[T]):
    """`after=last_id` asks for the next page, as long as `has_more`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
