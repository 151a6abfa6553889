"""`ryzanstein tenants …` and `ryzanstein projects …`: who is served, and how they divide themselves."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli import erasing, limits
from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database

_OWNER = typer.Option("default", "--tenant", help="Whose project.")


def register(app: typer.Typer) -> None:
    tenants = typer.Typer(help="Tenants, and what is kept of them.", no_args_is_help=True)
    tenants.command("list")(list_all)
    erasing.register(tenants)
    app.add_typer(tenants, name="tenants")
    projects = typer.Typer(help="Projects of tenants.", no_args_is_help=True)
    projects.command("create")(create)
    projects.command("list")(list_some)
    projects.command("archive")(archive)
    app.add_typer(projects, name="projects")
    limits.register(app)


def list_all(data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List tenants."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        records = [
            {
                "id": tenant.id,
                "name": tenant.name,
                "created_at": tenant.created_at.isoformat(timespec="seconds"),
                "erased_at": tenant.erased_at and tenant.erased_at.isoformat(timespec="seconds"),
            }
            for tenant in list_tenants(session)
        ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["id", "name", "created_at", "erased_at"]
    print_table(headers, [[str(record[header] or "") for header in headers] for record in records])


def create(
    name: str = typer.Argument(help="Name of the project."),
    tenant: str = _OWNER,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make a project. `ryzanstein keys create --project` makes keys of it."""
    from pipeline.tenancy.projects import create_project
    from pipeline.tenancy.tenants import find_tenant

    with open_database(data_dir) as session:
        project = create_project(session, find_tenant(session, tenant).id, name)
    typer.echo(json.dumps({"id": project.id, "tenant": tenant, "name": name}) if as_json else project.id)


def list_some(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List projects, archived ones too."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.projects import list_projects
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        found = list_projects(session, find_tenant_id(session, tenant))
    records = [
        {
            "id": project.id,
            "tenant": names[project.tenant_id],
            "name": project.name,
            "created_at": project.created_at.isoformat(timespec="seconds"),
            "archived_at": project.archived_at and project.archived_at.isoformat(timespec="seconds"),
        }
        for project in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["id", "tenant", "name", "created_at", "archived_at"]
    print_table(headers, [[str(record[header] or "") for header in headers] for record in records])


def archive(
    project: str = typer.Argument(help="Name or id of the project."),
    tenant: str = _OWNER,
    data_dir: Path | None = DATA_DIR,
) -> None:
    """Close a project: its keys are revoked. What it has submitted goes on, and is billed."""
    from pipeline.tenancy.projects import archive_project, find_project
    from pipeline.tenancy.tenants import find_tenant

    with open_database(data_dir) as session:
        found = archive_project(session, find_project(session, find_tenant(session, tenant).id, project))
    typer.echo(f"{found.id} is archived.")
