"""`/v1/models`: what this service can generate with."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from pipeline.gateway.auth import Caller
from pipeline.gateway.errors import ApiError
from pipeline.schemas.models import ModelList, ModelObject
from pipeline.tables import ServedModel
from pipeline.tables.session import transaction

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(caller: Caller) -> ModelList:
    """The models that groups have registered; all tenants see the same."""
    with transaction() as session:
        models = session.execute(select(ServedModel).order_by(ServedModel.name)).scalars()
        return ModelList(data=[ModelObject.of(model) for model in models])


# A model may be called `organisation/name`.
@router.get("/{model:path}")
def retrieve_model(caller: Caller, model: str) -> ModelObject:
    with transaction() as session:
        found = session.get(ServedModel, model)
    if found is None:
        raise ApiError(404, f"The model '{model[:128]}' does not exist.", param="model", code="model_not_found")
    return ModelObject.of(found)
