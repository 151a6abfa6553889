"""Models, as the API shows them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel

from pipeline.tables import ServedModel


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    #: Unix seconds: when a group first registered it.
    created: int
    owned_by: str = "ryzanstein"

    @classmethod
    def of(cls, model: ServedModel) -> Self:
        return cls(id=model.name, created=int(model.created_at.timestamp()))


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
