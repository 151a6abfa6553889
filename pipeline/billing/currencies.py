"""Amounts as people pay them: rounded once, to the currency's minor unit."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

#: Decimals of currencies that do not have two (ISO 4217).
_CODES_BY_DECIMALS = {
    decimals: codes.split()
    for decimals, codes in (
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    )
}

#: As many digits as any sum of amounts has; the default context would round at 28.
_WIDE = Context(prec=100)
_ZERO = Decimal(0)


def minor_decimals(currency: str) -> int:
    """Decimals of the currency's smallest unit: 2 for USD, 0 for JPY, 3 for KWD."""
    return next((decimals for decimals, codes in _CODES_BY_DECIMALS.items() if currency in codes), 2)


def round_to_minor(amount: Decimal, currency: str) -> Decimal:
    """`amount` to the minor unit, half away from zero, as commerce does."""
    unit = Decimal(1).scaleb(-minor_decimals(currency))
    rounded = amount.quantize(unit, rounding=ROUND_HALF_UP, context=_WIDE)
    return _WIDE.add(rounded, _ZERO)  # a zero has no sign


def rounding_of(amount: Decimal, currency: str) -> Decimal:
    """What rounding adds: exact amount + rounding = rounded amount."""
    return _WIDE.subtract(round_to_minor(amount, currency), amount)


def exact_text(amount: Decimal, currency: str) -> str:
    """Every digit of `amount`, with the currency's decimals at least and no needless zeros."""
    return decimal_text(amount, minor_decimals(currency))


def decimal_text(number: Decimal, least_decimals: int = 0) -> str:
    """Every digit of `number`, without an exponent, and without zeros at the end beyond `least_decimals`."""
    whole, _, decimals = f"{number:f}".partition(".")
    decimals = decimals.rstrip("0").ljust(least_decimals, "0")
    return f"{whole}.{decimals}" if decimals else whole
