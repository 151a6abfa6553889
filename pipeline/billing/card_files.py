"""Rate cards as people write them: YAML, of which every number is read as it is written.

plan: default
currency: USD
effective_from: 2026-12-01T00:00:00Z    # left out: from its publication on
batch_discount: 0.5                     # part that a batch saves
multipliers: {priority: 1.5, flex: 0.7}
models:
  tiny:
    input: 0.10                         # of 1,000,000 tokens
    cached_input: 0.05                  # left out: as input
    output:
      graduated: [{up_to: 1000000000, price: 0.40}, {price: 0.30}]
      minimum: 5                        # of a month in which there is any output
  large:
    input: {volume: [{up_to: 1000000, price: 2}, {price: 1.50}]}
    output: {package: {size: 1000000, price: 4}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final

import yaml
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.billing.pricing import EXACT, PER_TOKEN, ZERO, Rate, Tier
from pipeline.billing.rate_cards import RateCardError, check_currency
from pipeline.tables.billing import Meter
from pipeline.tables.rates import Pricing

#: Decimals that an amount may have: those of `tables.base.Money`.
_AMOUNT_DECIMALS: Final = 15
_LONGEST_FILE: Final = 1_000_000

_PRICE: Final = Field(ge=0, lt=10**14, decimal_places=6)
_Price = Annotated[Decimal, _PRICE]
_Multiplier = Annotated[Decimal, Field(ge=0, lt=1000, decimal_places=3)]
_PlanName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_ModelName = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]*\S[^\x00-\x1f]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tier(_Strict):
    up_to: Annotated[int, Field(gt=0, lt=2**63)] | None = None
    price: _Price


class _Package(_Strict):
    size: Annotated[int, Field(gt=0, lt=2**63)]
    price: _Price


class RateFile(_Strict):
    """What one meter costs: exactly one of the four."""

    price: _Price | None = None
    graduated: tuple[_Tier, ...] | None = None
    volume: tuple[_Tier, ...] | None = None
    package: _Package | None = None
    minimum: _Price = ZERO

    @model_validator(mode="after")
    def _check(self) -> RateFile:
        given = [name for name in ("price", "graduated", "volume", "package") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of price, graduated, volume and package; there is {found}")
        tiers = self.graduated or self.volume
        if tiers is None:
            if given[0] in ("graduated", "volume"):
                raise ValueError(f"{given[0]} has no tier")
            return self
        ends = [tier.up_to for tier in tiers]
        if ends[-1] is not None or None in ends[:-1] or ends[:-1] != sorted(set(ends[:-1]), key=lambda end: end or 0):
            raise ValueError("the tiers' up_to must rise, and the last tier has none")
        prices = [tier.price for tier in tiers]
        if self.volume and prices != sorted(prices, reverse=True):
            # One more token could make all others dearer: no bound of a cost would hold.
            raise ValueError("the prices of a volume must not rise")
        return self

    def rate(self) -> Rate:
        if self.package is not None:
            return Rate(Pricing.PACKAGE, (Tier(None, self.package.price),), self.package.size, self.minimum)
        if self.price is not None:
            return Rate(Pricing.FLAT, (Tier(None, self.price),), minimum=self.minimum)
        pricing = Pricing.GRADUATED if self.graduated else Pricing.VOLUME
        tiers = tuple(Tier(tier.up_to, tier.price) for tier in self.graduated or self.volume or ())
        return Rate(pricing, tiers, minimum=self.minimum)


_RateFile = Annotated[RateFile, BeforeValidator(lambda given: {"price": given} if isinstance(given, str) else given)]


class ModelFile(_Strict):
    """What the meters of one model cost."""

    input: _RateFile | None = None
    cached_input: _RateFile | None = None
    output: _RateFile | None = None

    def rates(self) -> dict[Meter, Rate]:
        """Those that are given."""
        given = {Meter.INPUT_UNCACHED: self.input, Meter.INPUT_CACHED: self.cached_input, Meter.OUTPUT: self.output}
        return {meter: rate.rate() for meter, rate in given.items() if rate is not None}


class Multipliers(_Strict):
    """Of the service classes; that of `standard` is 1."""

    priority: _Multiplier = Decimal(1)
    flex: _Multiplier = Decimal(1)


class CardFile(_Strict):
    """A whole card."""

    plan: _PlanName
    currency: str
    effective_from: AwareDatetime | None = None
    batch_discount: Annotated[Decimal, Field(ge=0, le=1, decimal_places=3)] = ZERO
    multipliers: Multipliers = Multipliers()
    models: Annotated[Mapping[_ModelName, ModelFile], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> CardFile:
        for model, prices in self.models.items():
            if prices.input is None or prices.output is None:
                raise ValueError(f"models.{model}: give input and output")
        return self

    def rates(self) -> dict[str, dict[Meter, Rate]]:
        """Of every model, of every meter."""
        found = {model: prices.rates() for model, prices in self.models.items()}
        for rates in found.values():
            rates.setdefault(Meter.INPUT_CACHED, rates[Meter.INPUT_UNCACHED])
        return found


class OverridesFile(_Strict):
    """Prices of a contract; what is left out is as on the cards that would hold without it."""

    models: Annotated[Mapping[_ModelName, ModelFile], Field(min_length=1)]


def read_card_file(content: str) -> CardFile:
    """Raises RateCardError for what is no card, or whose amounts could not be held exactly."""
    card: CardFile = _read(CardFile, content)
    check_currency(card.currency)
    check_exact(card.rates(), card.batch_discount, card.multipliers)
    return card


def read_overrides_file(content: str) -> OverridesFile:
    """Raises RateCardError."""
    overrides: OverridesFile = _read(OverridesFile, content)
    return overrides


def check_exact(rates: Mapping[str, Mapping[Meter, Rate]], batch_discount: Decimal, multipliers: Multipliers) -> None:
    """Raises RateCardError where an amount would need more decimals than are kept."""
    part = EXACT.subtract(Decimal(1), batch_discount)
    for model, by_meter in rates.items():
        for meter, rate in by_meter.items():
            for multiplier in (Decimal(1), multipliers.priority, multipliers.flex):
                for unit in _units(rate):
                    amount = EXACT.multiply(unit, EXACT.multiply(part, multiplier))
                    if _decimals(amount) > _AMOUNT_DECIMALS:
                        raise RateCardError(
                            f"{model}, {meter.value}: {unit:f} x {part} x {multiplier} = {amount:f} for one unit needs "
                            f"more than {_AMOUNT_DECIMALS} decimals. Give fewer decimals of price or multipliers."
                        )


def _units(rate: Rate) -> Sequence[Decimal]:
    """What amounts are whole multiples of, before multipliers."""
    if rate.pricing is Pricing.PACKAGE:
        return [rate.tiers[0].price, rate.minimum]
    return [*(EXACT.multiply(tier.price, PER_TOKEN) for tier in rate.tiers), rate.minimum]


def _decimals(number: Decimal) -> int:
    exponent = EXACT.normalize(number).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


class _Loader(yaml.BaseLoader):
    """Reads every scalar as its text: a number that became binary on the way would be another number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Some of them, each of some others, are more than any memory holds.
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise RateCardError(f"Line {mark.line + 1} has an alias (`*`): write out what it stands for.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise RateCardError(f"{twice!r} is given twice, in line {node.start_mark.line + 1} or after it.")
        return super().construct_mapping(node, deep)


def _read(kind: type[BaseModel], content: str) -> Any:
    if len(content) > _LONGEST_FILE:
        raise RateCardError(f"The card has {len(content)} characters; {_LONGEST_FILE} are the most that is read.")
    try:
        document = yaml.load(content, Loader=_Loader)  # noqa: S506 — it makes texts, lists and mappings alone
    except yaml.YAMLError as error:
        raise RateCardError(f"The card is no YAML: {error}") from None
    except RecursionError:
        raise RateCardError("The card is nested too deeply to be one.") from None
    if not isinstance(document, dict):
        raise RateCardError("The card must be a mapping: see `ryzanstein rates apply --help`.")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise RateCardError(f"{where}: {first['msg']}; found {str(first['input'])[:100]!r}") from None
