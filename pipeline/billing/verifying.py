"""Checks output files by their receipts, without the service: signatures, token counts, texts, prompts and amounts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.billing.merkle import leaf_of, root_of
from pipeline.billing.pricing import EXACT, PER_TOKEN, exact_sum
from pipeline.billing.receipts import VERSION, canonical, unpack_choices
from pipeline.signing import key_id_of, verify
from pipeline.tokenization import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line."""

    #: Of the output file, from 1; 0: of all of them together.
    line: int
    #: A word for programs, such as `wrong_amount`.
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """What receipts are checked with, beside the public key; what is None is not looked at."""

    #: PEM.
    public_key: str
    #: Of the model that answered: texts are compared with their tokens.
    tokenizer: Tokenizer | None = None
    #: As `pipeline.billing.revisions` has it.
    tokenizer_revision: str | None = None
    #: Packed tokens of the prompts, by custom_id, as the input file gives them.
    prompts: Mapping[str, bytes] | None = None


@dataclass
class Verification:
    num_lines: int = 0
    #: Lines whose receipt is all right.
    num_proved: int = 0
    faults: list[Fault] = field(default_factory=list)
    #: What the receipts say, by currency.
    amounts: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    #: Of the Merkle tree, by request.
    leaves: dict[str, bytes] = field(default_factory=dict)


class _Wrong(Exception):
    """One thing that is wrong, for which no further one is looked for in the same line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def verify_lines(lines: Iterable[bytes], proofs: Proofs, found: Verification | None = None) -> Verification:
    """Check every line of a file that is not blank; `found` is of the files before it, if there are any.

    Raises SigningKeyError for a key that is none.
    """
    key_id = key_id_of(proofs.public_key)
    found = found or Verification()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found.num_lines += 1
        try:
            payload = _check_line(line, key_id, proofs)
            request = payload["request"]
            if request in found.leaves:
                raise _Wrong("doubled", f"{request} has a line before this one.")
        except _Wrong as wrong:
            found.faults.append(Fault(number, wrong.code, str(wrong)))
            continue
        found.num_proved += 1
        currency = payload["currency"]
        found.amounts[currency] = exact_sum([found.amounts[currency], Decimal(payload["amount"])])
        found.leaves[request] = leaf_of(canonical(payload))
    return found


def verify_root(found: Verification, num_receipts: int, root: str | None) -> list[Fault]:
    """Whether the receipts are those that an invoice names: as many, and with its root over all of them."""
    if len(found.leaves) != num_receipts:
        message = (
            f"The invoice has {num_receipts} receipts, and {len(found.leaves)} are proved here. Give all output files "
            "of its month."
        )
        return [Fault(0, "other_receipts", message)]
    computed = root_of(leaf for _, leaf in sorted(found.leaves.items())).hex() if found.leaves else None
    if computed != root:
        return [Fault(0, "wrong_root", f"The root over these receipts is {computed}, the invoice says {root}.")]
    return []


def _check_line(data: bytes, key_id: str, proofs: Proofs) -> dict[str, Any]:
    """The payload of the line's receipt, of which all is right. Raises _Wrong."""
    line = _object(data)
    receipt = line.get("receipt")
    if not isinstance(receipt, dict):
        raise _Wrong("no_receipt", "The line has no receipt; its batch did not ask for them.")
    if receipt.get("key_id") != key_id:
        raise _Wrong("other_key", f"The receipt is signed with key {receipt.get('key_id')}, and this one is {key_id}.")
    payload = receipt.get("payload")
    if not isinstance(payload, dict) or not _is_signed(payload, receipt.get("signature"), proofs.public_key):
        raise _Wrong("bad_signature", "The signature is not that of the receipt: it was changed, or is not genuine.")
    if payload.get("version") != VERSION:
        raise _Wrong("other_version", f"The receipt is of version {payload.get('version')}, this reads {VERSION}.")
    try:
        _check_names(line, payload)
        choices = _check_tokens(receipt, payload)
        _check_counts(line, payload)
        _check_amounts(payload)
        _check_texts(line, payload, choices, proofs)
        _check_prompt(payload, proofs)
    except (KeyError, TypeError, AttributeError, InvalidOperation) as error:
        message = f"The line lacks what its receipt is of, or has it in another shape: {type(error).__name__}, {error}."
        raise _Wrong("incomplete", message) from None
    return payload


def _object(data: bytes) -> dict[str, Any]:
    try:
        line = json.loads(data)
    except (ValueError, RecursionError):
        raise _Wrong("not_json", "The line is no JSON.") from None
    if not isinstance(line, dict):
        raise _Wrong("not_json", "The line is no JSON object.")
    return line


def _is_signed(payload: dict[str, Any], signature: object, public_key: str) -> bool:
    try:
        return verify(public_key, canonical(payload), base64.b64decode(str(signature), validate=True))
    except (binascii.Error, TypeError, ValueError):
        return False


def _check_names(line: dict[str, Any], payload: dict[str, Any]) -> None:
    body = line["response"]["body"]
    for name, said, found in (
        ("id", payload["request"], line["id"]),
        ("custom_id", payload["custom_id"], line["custom_id"]),
        ("model", payload["model"], body["model"]),
    ):
        if said != found:
            raise _Wrong("other_line", f"The receipt is of another line: its {name} is {said!r}, the line's {found!r}.")


def _check_tokens(receipt: dict[str, Any], payload: dict[str, Any]) -> list[list[int]]:
    """The tokens of the choices, counted and hashed again."""
    try:
        packed = base64.b64decode(receipt["output_token_ids"], validate=True)
        choices = unpack_choices(packed)
    except (binascii.Error, ValueError) as error:
        raise _Wrong("wrong_tokens", f"output_token_ids can't be read: {error}") from None
    if hashlib.sha256(packed).hexdigest() != payload["output_hash"]:
        raise _Wrong("wrong_tokens", "output_token_ids are not the tokens that the receipt is of.")
    num_tokens = sum(len(choice) for choice in choices)
    if num_tokens != payload["output_tokens"]:
        raise _Wrong("wrong_count", f"The answer has {num_tokens} tokens, the receipt says {payload['output_tokens']}.")
    return choices


def _check_counts(line: dict[str, Any], payload: dict[str, Any]) -> None:
    usage = line["response"]["body"]["usage"]
    quantities = {each["meter"]: each["quantity"] for each in payload["meters"]}
    prompt = quantities["input_uncached"] + quantities.get("input_cached", 0)
    for name, said, found in (
        ("prompt_tokens", payload["prompt_tokens"], usage["prompt_tokens"]),
        ("completion_tokens", payload["output_tokens"], usage["completion_tokens"]),
        ("cached_tokens", payload["cached_tokens"], usage["prompt_tokens_details"]["cached_tokens"]),
        ("billed prompt tokens", payload["prompt_tokens"], prompt),
        ("billed output tokens", payload["output_tokens"], quantities["output"]),
    ):
        if said != found:
            raise _Wrong("wrong_count", f"{name}: the receipt says {said}, and {found} is what there is.")


def _check_amounts(payload: dict[str, Any]) -> None:
    multiplier = Decimal(payload["multiplier"])
    for each in payload["meters"]:
        if each["unit_price"] is None:  # by tiers or packages: it depends on what was used before in the month
            continue
        price = EXACT.multiply(EXACT.multiply(Decimal(each["unit_price"]), PER_TOKEN), multiplier)
        amount = EXACT.multiply(Decimal(each["quantity"]), price)
        if amount != Decimal(each["amount"]):
            raise _Wrong("wrong_amount", f"{each['meter']} comes to {amount:f}, the receipt says {each['amount']}.")
    total = exact_sum(Decimal(each["amount"]) for each in payload["meters"])
    if total != Decimal(payload["amount"]):
        raise _Wrong("wrong_amount", f"The meters sum to {total:f}, the receipt says {payload['amount']}.")


def _check_texts(
    line: dict[str, Any], payload: dict[str, Any], choices: Sequence[Sequence[int]], proofs: Proofs
) -> None:
    if proofs.tokenizer_revision is not None and payload["tokenizer_revision"] != proofs.tokenizer_revision:
        raise _Wrong(
            "other_tokenizer",
            f"The receipt is of tokenizer {payload['tokenizer_revision']}, and this folder's is "
            f"{proofs.tokenizer_revision}.",
        )
    if proofs.tokenizer is None:
        return
    shown = line["response"]["body"]["choices"]
    if sorted(choice["index"] for choice in shown) != list(range(len(choices))):
        raise _Wrong("wrong_text", f"The answer has not each of the receipt's {len(choices)} choices once.")
    for choice in shown:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        token_ids = choices[choice["index"]]
        # A stop string ends the text, and its tokens are billed.
        if not any(
            decoded.startswith(text) if choice["finish_reason"] == "stop" else decoded == text
            for decoded in _decoded(proofs.tokenizer, token_ids)
        ):
            raise _Wrong("wrong_text", f"Choice {choice['index']} is not the text of its tokens.")


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Iterator[str]:
    """As an answer of its own, and as the continuation of a text."""
    for is_continuation in (False, True):
        detokenizer = Detokenizer(tokenizer, is_continuation=is_continuation)
        yield detokenizer.extend(token_ids) + detokenizer.flush()


def _check_prompt(payload: dict[str, Any], proofs: Proofs) -> None:
    if proofs.prompts is None:
        return
    packed = proofs.prompts.get(payload["custom_id"])
    if packed is None:
        raise _Wrong("wrong_prompt", f"The input file has no request {payload['custom_id']!r}.")
    if len(packed) // 4 != payload["prompt_tokens"]:
        raise _Wrong(
            "wrong_prompt", f"The prompt has {len(packed) // 4} tokens, the receipt says {payload['prompt_tokens']}."
        )
    if hashlib.sha256(packed).hexdigest() != payload["prompt_hash"]:
        raise _Wrong("wrong_prompt", "The prompt is not the one that the receipt is of.")
