"""Signed receipts: what an answer was made of and what it cost, so that its bill can be checked by anybody.

A receipt is made when it is read, from facts that never change: the tokens of the prompt and of the answer, and the
price that the answer was recorded with. The same facts give the same receipt, and Ed25519 the same signature. A later
change of price shows on the invoice as a correction; the receipt stays.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

import orjson
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.billing.currencies import decimal_text
from pipeline.billing.merkle import leaf_of
from pipeline.billing.rating import exact_sum
from pipeline.billing.reports import Month
from pipeline.ids import request_public_id
from pipeline.tokenization import pack_token_ids, unpack_token_ids

#: Of what a receipt's payload holds; who reads another one can't check it.
VERSION: Final = 1

# An answer without the price of one of its meters has no receipt yet; one recorded by a group that knows of none
# never has.
_COLUMNS: Final = """
    r.id AS request_id, r.custom_id, r.batch_id, b.tenant_id, b.model, b.model_revision, b.tokenizer_revision,
    b.service_class, r.prompt_token_ids, a.output_token_ids, a.created_at, l.meters, l.currency,
    k.plan, k.version, encode(k.sha256, 'hex') AS sha256,
    (1 - k.batch_discount) * CASE b.service_class WHEN 'priority' THEN k.priority_multiplier
                                                  WHEN 'flex' THEN k.flex_multiplier ELSE 1 END AS multiplier
"""
_SOURCES: Final = """
    JOIN batches b ON b.id = r.batch_id
    JOIN LATERAL (
        SELECT json_agg(json_build_array(
                   l.meter, l.rated_quantity,
                   CASE WHEN p.pricing = 'flat' AND p.minimum = 0 THEN l.unit_price END::text, l.amount::text
               ) ORDER BY l.meter)::text AS meters,
               min(l.currency) AS currency, min(l.rate_card_id) AS rate_card_id, count(*) AS num_lines
        FROM usage_prices l
        LEFT JOIN rates p ON p.rate_card_id = l.rate_card_id AND p.model = b.model AND p.meter = l.meter
        WHERE l.request_id = r.id AND l.revision = 1
    ) l ON true
    JOIN rate_cards k ON k.id = l.rate_card_id
"""
_OF_BATCH: Final = text(f"""
    SELECT {_COLUMNS} FROM requests r JOIN results a ON a.request_id = r.id {_SOURCES}
    WHERE r.batch_id = :batch_id AND r.line > :after AND r.line <= :last AND a.output_token_ids IS NOT NULL
      AND l.num_lines = (SELECT count(*) FROM metered_usage u WHERE u.request_id = r.id)
    ORDER BY r.line
""")  # noqa: S608 — all of it is ours
_OF_MONTH: Final = text(f"""
    SELECT {_COLUMNS} FROM results a JOIN requests r ON r.id = a.request_id {_SOURCES}
    WHERE b.tenant_id = :tenant_id AND b.has_receipts AND a.created_at >= :begin AND a.created_at < :end
      AND a.output_token_ids IS NOT NULL AND l.currency = :currency AND a.request_id > :after
    ORDER BY a.request_id LIMIT :limit
""")  # noqa: S608
#: Answers that are in memory at once while the receipts of a month are hashed.
_PAGE: Final = 2_000


@dataclass(frozen=True, slots=True)
class MeterAmount:
    """What one meter of an answer cost."""

    meter: str
    quantity: int
    #: Of 1,000,000 tokens, before the multiplier; None where it depends on the quantity of the month.
    unit_price: Decimal | None
    amount: Decimal


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a receipt says, and the tokens that it says it of."""

    request_id: int
    custom_id: str
    batch_id: str
    tenant_id: str
    model: str
    model_revision: str | None
    tokenizer_revision: str | None
    service_class: str
    prompt_token_ids: bytes
    #: As `pack_choices` gives it.
    output_token_ids: bytes
    #: Unix seconds.
    recorded_at: int
    meters: Sequence[MeterAmount]
    #: (1 - discount of a batch) x that of the service class.
    multiplier: Decimal
    currency: str
    plan: str
    card_version: int
    card_sha256: str | None

    def payload(self) -> dict[str, Any]:
        """What is signed. Strings and integers alone, so that no reader can take it otherwise."""
        return {
            "version": VERSION,
            "request": request_public_id(self.request_id),
            "custom_id": self.custom_id,
            "batch": self.batch_id,
            "tenant": self.tenant_id,
            "model": self.model,
            "model_revision": self.model_revision,
            "tokenizer_revision": self.tokenizer_revision,
            "service_class": self.service_class,
            "recorded_at": self.recorded_at,
            "prompt_tokens": len(self.prompt_token_ids) // 4,
            "cached_tokens": sum(each.quantity for each in self.meters if each.meter == "input_cached"),
            "output_tokens": sum(len(choice) for choice in unpack_choices(self.output_token_ids)),
            "prompt_hash": hashlib.sha256(self.prompt_token_ids).hexdigest(),
            "output_hash": hashlib.sha256(self.output_token_ids).hexdigest(),
            "rate_card": {"plan": self.plan, "version": self.card_version, "sha256": self.card_sha256},
            "multiplier": decimal_text(self.multiplier),
            "meters": [
                {
                    "meter": each.meter,
                    "quantity": each.quantity,
                    "unit_price": None if each.unit_price is None else decimal_text(each.unit_price),
                    "amount": decimal_text(each.amount),
                }
                for each in self.meters
            ],
            "amount": decimal_text(exact_sum(each.amount for each in self.meters)),
            "currency": self.currency,
        }


def canonical(payload: dict[str, Any]) -> bytes:
    """The bytes that are signed: JSON in UTF-8, keys in order, without spaces."""
    return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)


class Signer(Protocol):
    """A `pipeline.signing.SigningKey`, or what is as long."""

    @property
    def key_id(self) -> str: ...
    def sign(self, data: bytes) -> bytes: ...


class BlankSigner:
    """Signs with zeros: receipts of the right length, for whoever has to know that alone."""

    key_id = "0" * 16

    def sign(self, data: bytes) -> bytes:
        return bytes(64)


def signed_receipt(facts: Facts, key: Signer) -> dict[str, Any]:
    """What an output line carries under `receipt`."""
    payload = facts.payload()
    return {
        "payload": payload,
        "output_token_ids": base64.b64encode(facts.output_token_ids).decode(),
        "key_id": key.key_id,
        "signature": base64.b64encode(key.sign(canonical(payload))).decode(),
    }


def pack_choices(choices: Iterable[Sequence[int]]) -> bytes:
    """The tokens of an answer: of each choice how many they are, then they; as big-endian 32-bit numbers."""
    return pack_token_ids(number for choice in choices for number in (len(choice), *choice))


def unpack_choices(packed: bytes) -> list[list[int]]:
    """The reverse of `pack_choices`. Raises ValueError for what it did not make."""
    if len(packed) % 4:
        raise ValueError(f"{len(packed)} bytes are no whole number of tokens.")
    numbers = unpack_token_ids(packed)
    choices, at = [], 0
    while at < len(numbers):
        end = at + 1 + numbers[at]
        if end > len(numbers):
            raise ValueError(f"a choice of {numbers[at]} tokens has {len(numbers) - at - 1}.")
        choices.append(numbers[at + 1 : end])
        at = end
    return choices


def batch_receipts(conn: Connection, batch_id: str, after: int, last: int, key: Signer) -> dict[int, bytes]:
    """JSON of the receipts of the lines `after` < line <= `last` of a batch, by request."""
    rows = conn.execute(_OF_BATCH, {"batch_id": batch_id, "after": after, "last": last})
    return {row.request_id: orjson.dumps(signed_receipt(_facts(row), key)) for row in rows}


def month_leaves(session: Session, tenant_id: str, month: Month, currency: str) -> list[bytes]:
    """The leaves of the Merkle tree of a month's receipts, in the order of their requests."""
    leaves: list[bytes] = []
    after = 0
    while True:
        rows = session.execute(
            _OF_MONTH,
            {
                "tenant_id": tenant_id,
                "begin": month.start,
                "end": month.end,
                "currency": currency,
                "after": after,
                "limit": _PAGE,
            },
        ).all()
        leaves += [leaf_of(canonical(_facts(row).payload())) for row in rows]
        if len(rows) < _PAGE:
            return leaves
        after = rows[-1].request_id


def _facts(row: Any) -> Facts:
    return Facts(
        request_id=row.request_id,
        custom_id=row.custom_id,
        batch_id=row.batch_id,
        tenant_id=row.tenant_id,
        model=row.model,
        model_revision=row.model_revision,
        tokenizer_revision=row.tokenizer_revision,
        service_class=row.service_class,
        prompt_token_ids=bytes(row.prompt_token_ids),
        output_token_ids=bytes(row.output_token_ids),
        recorded_at=int(row.created_at.timestamp()),
        meters=[
            MeterAmount(meter, quantity, None if price is None else Decimal(price), Decimal(amount))
            for meter, quantity, price, amount in json.loads(row.meters)
        ],
        multiplier=row.multiplier,
        currency=row.currency,
        plan=row.plan,
        card_version=row.version,
        card_sha256=row.sha256,
    )
