"""Projects: parts of a tenant whose keys, files, batches and usage are kept apart."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.tables import ApiKey, Project
from pipeline.tenancy import audit_log
from pipeline.tenancy.tenants import DEFAULT_PROJECT


class UnknownProjectError(UserError):
    """The tenant has no project of this name."""


def create_project(session: Session, tenant_id: str, name: str) -> Project:
    """A new project of a tenant. Raises UserError for a name that is none, or is taken."""
    if not name.strip() or "\x00" in name:
        raise UserError(f"{name!r} can't be the name of a project: give at least one visible character.")
    made = session.execute(
        insert(Project)
        .values(id=new_id("proj"), tenant_id=tenant_id, name=name)
        .on_conflict_do_nothing(index_elements=["tenant_id", "name"])
        .returning(Project)
    ).scalar_one_or_none()
    if made is None:
        raise UserError(f"There is a project {name!r} of this tenant already. Names of archived projects stay taken.")
    audit_log.record(session, act="project.create", object=made.id, details={"tenant": tenant_id, "name": name})
    return made


def find_project(session: Session, tenant_id: str, reference: str) -> Project:
    """The tenant's project of this name or id, unless it is archived. Raises UnknownProjectError."""
    found = session.execute(
        select(Project).where(
            Project.tenant_id == tenant_id,
            (Project.name == reference) | (Project.id == reference),
            Project.archived_at.is_(None),
        )
    ).scalar_one_or_none()
    if found is None:
        known = [project.name for project in list_projects(session, tenant_id) if project.archived_at is None]
        raise UnknownProjectError(f"This tenant has no project {reference!r}. Projects: {', '.join(known)}.")
    return found


def list_projects(session: Session, tenant_id: str | None = None) -> Sequence[Project]:
    """Projects of one tenant or of all, oldest first, archived ones included."""
    query = select(Project).order_by(Project.created_at, Project.id)
    if tenant_id is not None:
        query = query.where(Project.tenant_id == tenant_id)
    return session.execute(query).scalars().all()


def archive_project(session: Session, project: Project) -> Project:
    """Close a project: its keys are revoked, and it gets no new ones. What it has submitted goes on, and is billed.

    Raises UserError for the default project, which takes what no other project has.
    """
    if project.name == DEFAULT_PROJECT:
        raise UserError("The default project can't be archived.")
    revoked = _revoke_keys(session, project.id)
    # Waits for whoever makes a key of the project, or takes one's place; who comes later finds it closed.
    session.execute(update(Project).where(Project.id == project.id).values(archived_at=func.now()))
    revoked += _revoke_keys(session, project.id)
    session.refresh(project)
    audit_log.record(session, act="project.archive", object=project.id, details={"revoked_keys": sorted(revoked)})
    return project


def _revoke_keys(session: Session, project_id: str) -> list[str]:
    is_valid = (ApiKey.project_id == project_id) & ApiKey.revoked_at.is_(None)
    revoked = update(ApiKey).where(is_valid).values(revoked_at=func.now()).returning(ApiKey.id)
    return list(session.execute(revoked).scalars())
