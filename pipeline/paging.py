"""Pages of a tenant's rows, by the moment they were made; a page begins after the row that a cursor names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, select, true, tuple_
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError
from pipeline.tables import Batch, File, Invoice, WebhookEndpoint
from pipeline.tenancy.scopes import is_in_project

Row = TypeVar("Row", Batch, File, Invoice, WebhookEndpoint)


class UnknownCursorError(PipelineError):
    """The cursor names no row that the caller may see."""


@dataclass(frozen=True)
class Page(Generic[Row]):
    rows: Sequence[Row]
    has_more: bool

    @property
    def first_id(self) -> str | None:
        return self.rows[0].id if self.rows else None

    @property
    def last_id(self) -> str | None:
        return self.rows[-1].id if self.rows else None


def read_page(
    session: Session,
    entity: type[Row],
    tenant_id: str,
    *conditions: ColumnElement[bool],
    project_id: str | None = None,
    after: str | None,
    limit: int,
    newest_first: bool = True,
) -> Page[Row]:
    """At most `limit` rows of the tenant, or of a project of it, after the row `after`. Raises UnknownCursorError.

    The cursor's row need not meet the conditions: who deletes what a page shows can go on from its last row.
    """
    order = (entity.created_at, entity.id)
    is_visible = _is_visible(entity, tenant_id, project_id)
    query = select(entity).where(is_visible, *conditions)
    if after is not None:
        cursor = session.execute(select(*order).where(is_visible, entity.id == after)).one_or_none()
        if cursor is None:
            raise UnknownCursorError
        position = tuple_(*order)
        query = query.where(position < tuple_(*cursor) if newest_first else position > tuple_(*cursor))
    query = query.order_by(*(column.desc() if newest_first else column.asc() for column in order))
    rows = session.execute(query.limit(limit + 1)).scalars().all()
    return Page(rows=rows[:limit], has_more=len(rows) > limit)


def _is_visible(entity: type[Row], tenant_id: str, project_id: str | None) -> ColumnElement[bool]:
    if issubclass(entity, Invoice):
        return entity.tenant_id == tenant_id
    if issubclass(entity, WebhookEndpoint):  # one without a project is of all of them, and not of the default one
        is_of_project = true() if project_id is None else entity.project_id == project_id
        return (entity.tenant_id == tenant_id) & is_of_project
    return is_in_project(entity, tenant_id, project_id)
