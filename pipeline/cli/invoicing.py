"""`ryzanstein bill invoice …`, `bill report` and `bill customer`: invoices, and the files that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pipeline.billing.documents import Document
    from pipeline.billing.reports import Month

_MONTH = typer.Option(..., "--month", help="Month in UTC, such as 2026-11.")
_INVOICE = typer.Argument(help="Id or number of the invoice.")


def register(bill_commands: typer.Typer) -> None:
    """Adds to `ryzanstein bill`."""
    invoices = typer.Typer(help="Invoices: one per tenant, currency and month.", no_args_is_help=True)
    invoices.command("create")(create)
    invoices.command("finalize")(finalize)
    invoices.command("void")(void)
    invoices.command("list")(list_)
    invoices.command("show")(show)
    bill_commands.add_typer(invoices, name="invoice")
    bill_commands.command("report")(report)
    bill_commands.command("customer")(customer)


def create(
    month: str = _MONTH,
    tenant: str | None = TENANT,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make the drafts of a month that are missing."""
    from pipeline.billing.invoices import create_invoices, database_now

    wanted = _month(month)
    with open_database(data_dir) as session:
        tenants = _tenants(session, tenant)
    records = []
    for tenant_id, name in tenants:
        with open_database(data_dir) as session:  # one transaction each: it holds the lock of a tenant
            made = create_invoices(session, tenant_id, wanted, database_now(session))
            records += [_record(invoice, name) for invoice in made]
    _print(records, as_json, f"There is nothing to bill in {wanted}.")


def finalize(
    invoice: list[str] = typer.Argument(None, help="Ids of drafts. (default: all of --month)"),
    month: str | None = typer.Option(None, "--month", help="Issue every draft of this month."),
    tenant: str | None = TENANT,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Issue drafts: number them, and close them for ever. Each is one transaction; a failure leaves the others done."""
    from pipeline.billing.invoices import database_now, finalize_invoice, hold_rating, list_invoices
    from pipeline.tables import InvoiceStatus

    if bool(invoice) == (month is not None):
        raise typer.BadParameter("Give the ids of drafts, or --month for all drafts of a month.")
    names: list[str] = list(invoice or [])
    if month is not None:
        with open_database(data_dir) as session:
            open_states = (InvoiceStatus.DRAFT, InvoiceStatus.COLLECTING)
            found = list_invoices(session, tenant_id=find_tenant_id(session, tenant), month=_month(month))
            names = [each.id for each in found if each.status in open_states]
    records, failures = [], []
    for name in names:
        try:
            with open_database(data_dir) as session:
                hold_rating(session)
                issued = finalize_invoice(session, name, database_now(session))
                records.append(_record(issued, _name_of(session, issued.tenant_id)))
        except UserError as error:
            failures.append(f"{name}: {error}")
    _print(records, as_json, "Nothing was issued.")
    if failures:
        raise UserError("Not issued. " + " ".join(failures))


def void(
    invoice: str = _INVOICE,
    reason: str = typer.Option(..., "--reason", help="Why; the invoice shows it."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Take an invoice back. It keeps its number; what it billed may be billed again."""
    from pipeline.billing.invoices import database_now, void_invoice

    with open_database(data_dir) as session:
        taken_back = void_invoice(session, invoice, reason, database_now(session))
        record = _record(taken_back, _name_of(session, taken_back.tenant_id))
    _print([record], as_json, "")


def list_(
    month: str | None = typer.Option(None, "--month", help="Only this month, such as 2026-11. (default: all)"),
    tenant: str | None = TENANT,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """List invoices, the newest month first. A draft has no total yet: `show` reads what it would be."""
    from pipeline.billing.invoices import list_invoices

    with open_database(data_dir) as session:
        found = list_invoices(
            session, tenant_id=find_tenant_id(session, tenant), month=None if month is None else _month(month)
        )
        records = [_record(each, _name_of(session, each.tenant_id)) for each in found]
    _print(records, as_json, "There are no invoices.")


def show(invoice: str = _INVOICE, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """Show an invoice; of a draft, what it would be now."""
    from pipeline.billing.forms.json_form import document_record
    from pipeline.billing.forms.wording import cells_of, facts_of, grouped, title_of
    from pipeline.billing.invoice_reading import document_of
    from pipeline.billing.invoices import find_invoice
    from pipeline.cli.rendering import print_table

    with open_database(data_dir) as session:
        document = document_of(session, find_invoice(session, invoice))
    if as_json:
        typer.echo(json.dumps(document_record(document), indent=2))
        return
    typer.echo(f"{title_of(document)} for {document.customer.name}")
    for name, value in facts_of(document):
        typer.echo(f"{name}: {value}")
    rows = [list(cells_of(line, document.currency)) for line in document.lines]
    total = ["Total", "", "", grouped(document.total, document.currency)]
    print_table(["description", "#quantity", "#price of 1M", f"#{document.currency}"], [*rows, total])


def report(
    month: str = _MONTH,
    tenant: str | None = TENANT,
    form: str = typer.Option("pdf", "--format", help="Forms, with commas: pdf, html, xlsx, csv, json, focus, journal."),
    out: Path = typer.Option(Path("."), "--out", help="Folder for the files; made if it is not there."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Write the invoices of a month to files; what is not issued yet, as it would be now."""
    from pipeline.billing.currencies import exact_text
    from pipeline.billing.forms import FORMS
    from pipeline.billing.invoices import database_now, month_documents

    forms = [name.strip() for name in form.split(",") if name.strip()]
    unknown = [name for name in forms if name not in FORMS]
    if unknown or not forms:
        raise typer.BadParameter(f"{unknown} is not one of {', '.join(FORMS)}.", param_hint="--format")
    wanted = _month(month)
    out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    with open_database(data_dir) as session:
        now = database_now(session)
        for tenant_id, name in _tenants(session, tenant):
            for document in month_documents(session, tenant_id, wanted, now):
                files = [str(_write(session, document, each, out)) for each in forms]
                total = exact_text(document.total, document.currency)
                records.append(
                    {
                        "tenant": name,
                        "invoice": document.number,
                        "status": document.status.value,
                        "total": total,
                        "currency": document.currency,
                        "files": files,
                    }
                )
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    if not records:
        typer.echo(f"There is nothing to bill in {wanted}.")
    for record in records:
        typer.echo(
            f"{record['tenant']}: {record['invoice'] or record['status']}, {record['total']} {record['currency']}"
        )
        for path in record["files"]:
            typer.echo(f"  {path}")


def customer(
    tenant: str = typer.Option(..., "--tenant", help="Whose invoices."),
    name: str = typer.Option(..., help="Who they are made out to."),
    address: str = typer.Option("", help=r"Lines of the address; \n begins a new one."),
    tax_id: str = typer.Option("", help="The customer's tax number."),
    reference: str = typer.Option("", help="What the customer wants to read on them, such as an order's number."),
    data_dir: Path | None = DATA_DIR,
) -> None:
    """Say who the invoices of a tenant are made out to; holds for those that are made from now on."""
    from pipeline.tables import BillingDetails
    from pipeline.tenancy.audit_log import record

    if not name.strip():
        raise UserError("Give the name that invoices are made out to.")
    with open_database(data_dir) as session:
        tenant_id = find_tenant_id(session, tenant)
        session.merge(
            BillingDetails(
                tenant_id=tenant_id,
                name=name,
                address=address.replace("\\n", "\n"),
                tax_id=tax_id,
                reference=reference,
            )
        )
        session.flush()
        record(session, act="customer.set", object=str(tenant_id), details={"name": name})
    typer.echo(f"Invoices of {tenant} are made out to {name}.")


def _write(session: Session, document: Document, form: str, folder: Path) -> Path:
    """In place of a file of before, and only when all of it is there."""
    from pipeline.billing.forms import FORMS, write_form

    stem = document.number or f"{document.status}-{document.month}-{document.currency}-{document.tenant_id}"
    path = folder / f"{stem}.{FORMS[form].extension}"
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as file:
            for piece in write_form(session, document, form):
                file.write(piece)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}.") from None
    finally:
        draft.unlink(missing_ok=True)
    return path


def _tenants(session: Session, tenant: str | None) -> list[tuple[str, str]]:
    """Ids and names of one tenant, or of all."""
    from pipeline.tenancy.tenants import find_tenant, list_tenants

    found = list_tenants(session) if tenant is None else [find_tenant(session, tenant)]
    return [(each.id, each.name) for each in found]


def _name_of(session: Session, tenant_id: str) -> str:
    from pipeline.tables import Tenant

    return session.get_one(Tenant, tenant_id).name


def _record(invoice: Any, tenant: str) -> dict[str, Any]:
    from pipeline.billing.currencies import exact_text
    from pipeline.billing.reports import Month

    return {
        "id": invoice.id,
        "number": invoice.number,
        "tenant": tenant,
        "month": str(Month.of_day(invoice.month_start)),
        "status": invoice.status.value,
        "total": None if invoice.total is None else exact_text(invoice.total, invoice.currency),
        "currency": invoice.currency,
        "issued_at": invoice.issued_at and invoice.issued_at.isoformat(timespec="seconds"),
    }


def _print(records: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    from pipeline.cli.rendering import print_table

    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif not records:
        typer.echo(empty)
    else:
        headers = ["id", "number", "tenant", "month", "status", "#total", "currency", "issued_at"]
        print_table(headers, [[str(record[header.lstrip("#")] or "") for header in headers] for record in records])


def _month(text: str) -> Month:
    from pipeline.billing.reports import Month

    return Month.parse(text)
