"""An invoice as rows of FOCUS 1.2, the open specification of cost and usage data.

The sum of BilledCost is the invoice's total: what rounding adds to the exact costs is a row of its own. Columns of ours
begin with `x_`, as the specification wants it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from pipeline.billing.currencies import decimal_text
from pipeline.billing.documents import Document, Item, Line
from pipeline.billing.forms.escaping import cell_text
from pipeline.billing.forms.tables import csv_pieces
from pipeline.billing.pricing import EXACT, PER_TOKEN, exact_sum
from pipeline.billing.reports import Month
from pipeline.tables.invoices import LineKind

#: Those that are mandatory, others that we have something to say in, and, empty, those that readers of earlier versions
#: want to be there.
COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "BillingAccountType",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "InvoiceId",
    "ListUnitPrice",
    "PricingCategory",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "Tags",
    "x_ApiKeyId",
    "x_ApiKeyName",
    "x_Model",
    "x_RateCardId",
    "x_ServiceClass",
)

_SERVICE: Final = {
    "ServiceCategory": "AI and Machine Learning",
    "ServiceSubcategory": "Generative AI",
    "ServiceName": "Batch generation",
}
#: Of lines that are not usage: the category of the charge, and how often it comes.
_CATEGORIES: Final = {
    LineKind.COMMITMENT: ("Purchase", "Recurring"),
    LineKind.CREDIT_NOTE: ("Credit", "One-Time"),
    LineKind.CREDIT: ("Credit", "One-Time"),
}
_MILLION: Final = "1000000 Tokens"


def focus_form(document: Document) -> Iterator[bytes]:
    """CSV, one row for each item, for each other line, and for the rounding."""
    return csv_pieces(COLUMNS, ([row.get(column, "") for column in COLUMNS] for row in _rows(document)))


def _rows(document: Document) -> Iterator[dict[str, str]]:
    lines = {line.position: line for line in document.lines}
    for item in document.items:
        yield _common(document) | _item(document, item, lines[item.position])
    for line in document.lines:
        if line.kind in _CATEGORIES:
            yield _common(document) | _other(document, line)
    rounding = exact_sum([document.total, document.exact.copy_negate()])
    if rounding:
        yield _common(document) | _charge(
            "Adjustment", "Rounding to the minor unit of the currency", rounding, document.month, "One-Time"
        )


def _common(document: Document) -> dict[str, str]:
    supplier = cell_text(document.supplier.name)
    return {
        "BillingAccountId": document.tenant_id,
        "BillingAccountName": cell_text(document.customer.name),
        "BillingAccountType": "Tenant",
        "BillingCurrency": document.currency,
        "BillingPeriodStart": _moment(document.month.start),
        "BillingPeriodEnd": _moment(document.month.end),
        "InvoiceId": document.number or "",
        "InvoiceIssuerName": supplier,
        "ProviderName": supplier,
        "PublisherName": supplier,
        **_SERVICE,
    }


def _item(document: Document, item: Item, line: Line) -> dict[str, str]:
    cost = decimal_text(item.exact)
    quantity = Decimal(item.quantity)
    row = {
        "BilledCost": cost,
        "EffectiveCost": cost,
        "ContractedCost": cost,
        "ListCost": cost,
        "ChargeCategory": "Usage",
        # Only for what was invoiced before.
        "ChargeClass": "Correction" if line.kind is LineKind.CORRECTION else "",
        "ChargeDescription": cell_text(line.description),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _moment(_begin(item.day)),
        "ChargePeriodEnd": _moment(_begin(item.day) + timedelta(days=1)),
        "ConsumedQuantity": str(item.quantity),
        "ConsumedUnit": "Tokens",
        "PricingCategory": "Standard",
        "PricingQuantity": decimal_text(EXACT.multiply(quantity, PER_TOKEN)),
        "PricingUnit": _MILLION,
        "SkuId": cell_text(f"{item.model}/{item.meter}"),
        "SkuMeter": item.meter.value.replace("_", " ").title(),
        "SkuPriceId": cell_text(f"{item.rate_card_id}/{item.model}/{item.meter}/{item.service_class}"),
        "SubAccountId": item.project_id or "",
        "SubAccountName": cell_text(document.name_of(item.project_id)),
        "SubAccountType": "Project" if item.project_id else "",
        "x_ApiKeyId": item.api_key_id,
        "x_ApiKeyName": cell_text(document.name_of(item.api_key_id)),
        "x_Model": cell_text(item.model),
        "x_RateCardId": str(item.rate_card_id),
        "x_ServiceClass": item.service_class.value,
    }
    if item.unit_price is not None:
        list_cost = EXACT.multiply(EXACT.multiply(quantity, item.unit_price), PER_TOKEN)
        row |= {"ListUnitPrice": decimal_text(item.unit_price), "ListCost": decimal_text(list_cost)}
    return row


def _other(document: Document, line: Line) -> dict[str, str]:
    category, frequency = _CATEGORIES[line.kind]
    is_correction = line.kind is LineKind.COMMITMENT and line.month != document.month
    return {
        **_charge(category, line.description, line.exact, line.month, frequency),
        "ChargeClass": "Correction" if is_correction else "",
    }


def _charge(category: str, description: str, cost: Decimal, month: Month, frequency: str) -> dict[str, str]:
    shown = decimal_text(cost)
    return {
        "BilledCost": shown,
        "EffectiveCost": shown,
        "ContractedCost": shown,
        "ListCost": shown,
        "ChargeCategory": category,
        "ChargeDescription": cell_text(description),
        "ChargeFrequency": frequency,
        "ChargePeriodStart": _moment(month.start),
        "ChargePeriodEnd": _moment(month.end),
    }


def _begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
