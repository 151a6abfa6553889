"""What is wrong with a request, in the codes and words of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pipeline.errors import PipelineError

T = TypeVar("T")

#: Of a parameter's name as the client wrote it.
_MAX_PARAM_CHARS = 128

_AT = r"(?: - at `\$(?P<path>.*)`)?"
_UNKNOWN = re.compile(rf"Object contains unknown field `(?P<name>.*?)`{_AT}", re.DOTALL)
_MISSING = re.compile(rf"Object missing required field `(?P<name>.*?)`{_AT}", re.DOTALL)
_LENGTH = re.compile(rf"Expected `(?P<kind>\w+)` of length (?P<sign><=|>=) (?P<limit>\d+){_AT}", re.DOTALL)
_RANGE = re.compile(rf"Expected `(?P<kind>int|float)` (?P<sign><=|>=|<|>) (?P<limit>\S+){_AT}", re.DOTALL)
_TYPE = re.compile(rf"Expected `(?P<expected>[^`]+)`, got `(?P<got>\w+)`{_AT}", re.DOTALL)
_OTHER = re.compile(rf"(?P<what>.*?){_AT}", re.DOTALL)

_KINDS = {"str": "a string", "int": "an integer", "float": "a decimal", "bool": "a boolean", "array": "an array"}
_KINDS |= {"object": "an object", "null": "null"}


class InvalidRequestError(PipelineError):
    """A line can't be run: `code`, the parameter as a path within the line, and a message that says what to do."""

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(storable(message))
        self.code = code
        self.param = None if param is None else storable(param[:_MAX_PARAM_CHARS])


def missing(param: str) -> InvalidRequestError:
    """In OpenAI's words."""
    return InvalidRequestError("missing_required_parameter", param, f"Missing required parameter: '{param}'.")


def decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw, where: str) -> T:
    """Decode JSON, `where` within the line. Raises InvalidRequestError at the first thing that is wrong."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(str(error), data, where) from None
    except msgspec.DecodeError as error:
        raise _not_json(bytes(data), str(error)) from None
    except UnicodeDecodeError:
        raise _not_utf8() from None
    except RecursionError:
        raise InvalidRequestError("invalid_json_line", None, "This line is nested too deeply.") from None


def _not_json(data: bytes, reason: str) -> InvalidRequestError:
    try:
        data.decode()
    except UnicodeDecodeError:
        return _not_utf8()
    return InvalidRequestError("invalid_json_line", None, f"This line is not valid JSON. {reason}.")


def _not_utf8() -> InvalidRequestError:
    return InvalidRequestError("invalid_encoding", None, "This line is not UTF-8.")


def _explain(message: str, data: bytes | msgspec.Raw, where: str) -> InvalidRequestError:
    """msgspec says what is wrong, and where, in one sentence; this is the sentence that OpenAI's API would say."""
    explanations: list[tuple[re.Pattern[str], Callable[[re.Match[str], str], InvalidRequestError]]] = [
        (_UNKNOWN, _unknown),
        (_MISSING, _missing_field),
        (_LENGTH, _wrong_length),
        (_RANGE, lambda match, param: _out_of_range(match, param, _value_at(data, match["path"]))),
        (_TYPE, _wrong_type),
    ]
    for pattern, explanation in explanations:
        if match := pattern.fullmatch(message):
            return explanation(match, _param(where, match["path"]))
    match = _OTHER.fullmatch(message)
    param = _param(where, match["path"] if match else None)
    return InvalidRequestError("invalid_value", param, f"Invalid '{param}': the value is not usable.")


def _param(where: str, path: str | None) -> str:
    # Keys of a mapping are written `[...]`.
    return (where + (path or "")).replace("[...]", "").strip(".")


def _unknown(match: re.Match[str], param: str) -> InvalidRequestError:
    name = f"{param}.{match['name']}".strip(".")[:_MAX_PARAM_CHARS]
    return InvalidRequestError("unknown_parameter", name, f"Unknown parameter: '{name}'.")


def _missing_field(match: re.Match[str], param: str) -> InvalidRequestError:
    return missing(f"{param}.{match['name']}".strip("."))


def _wrong_length(match: re.Match[str], param: str) -> InvalidRequestError:
    kind, limit = match["kind"], match["limit"]
    if match["sign"] == ">=":
        return InvalidRequestError(f"{_noun(kind)}_below_min_length", param, f"Invalid '{param}': it is too short.")
    message = f"Invalid '{param}': {_noun(kind)} too long. Expected a length of at most {limit}."
    return InvalidRequestError(f"{_noun(kind)}_above_max_length", param, message)


def _out_of_range(match: re.Match[str], param: str, value: Any) -> InvalidRequestError:
    kind = "integer" if match["kind"] == "int" else "decimal"
    is_above = match["sign"].startswith("<")
    side, code = ("above maximum", "above_max_value") if is_above else ("below minimum", "below_min_value")
    limit = match["limit"].removesuffix(".0")
    got = f", but got {value:.6g} instead" if isinstance(value, int | float) and abs(value) < 2**63 else ""
    message = f"Invalid '{param}': {kind} {side} value. Expected a value {match['sign']} {limit}{got}."
    return InvalidRequestError(f"{kind}_{code}", param, message)


def _wrong_type(match: re.Match[str], param: str) -> InvalidRequestError:
    expected = [_KINDS[kind] for kind in match["expected"].split(" | ") if kind in _KINDS and kind != "null"]
    got = _KINDS.get(match["got"], "something else")
    if not param:
        return InvalidRequestError("invalid_json_line", None, f"This line is not a JSON object, but {got}.")
    if param.startswith("body.prompt["):
        message = (
            "Invalid type for 'body.prompt': expected one prompt, as a string or as an array of token ids. "
            "Write one line for each prompt."
        )
        return InvalidRequestError("invalid_type", "body.prompt", message)
    message = f"Invalid type for '{param}': expected {' or '.join(expected)}, but got {got} instead."
    return InvalidRequestError("invalid_type", param, message)


def _noun(kind: str) -> str:
    return {"str": "string"}.get(kind, kind)


def _value_at(data: bytes | msgspec.Raw, path: str | None) -> Any:
    """The value of a field of the outermost object; None where it is deeper, or where what follows it is no JSON."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    raw = fields.get((path or "").removeprefix("."))
    return None if raw is None or len(bytes(raw)) > 32 else msgspec.json.decode(raw)


def storable(text: str) -> str:
    """PostgreSQL holds no U+0000."""
    return text.replace("\0", "\ufffd")
