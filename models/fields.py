"""Fields of a JSON object, read with their types checked: a configuration file is untrusted input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from models.errors import InvalidConfig

#: No configuration file of a model comes near it; it keeps a wrong file from filling the memory.
MAX_FILE_BYTES = 16 * 1024**2
#: Largest integer that a field may hold.
MAX_INTEGER = 2**31 - 1
#: Magnitudes of numbers: no model is near them, and within them our arithmetic can't overflow.
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e12


class Fields:
    """One JSON object. A null counts as absent, as it does for transformers; errors name the field and its value."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str) -> Any:
        """The raw value, unchecked; None where there is none."""
        return self._values.get(name)

    def fail(self, name: str, expected: str) -> NoReturn:
        """Raise InvalidConfig for a field whose value is not `expected`."""
        value = self._values.get(name)
        found = "it is missing" if value is None else f"it is {shown(value)}"
        raise InvalidConfig(f"{self._source}: {name} must be {expected}, but {found}.")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """A whole number within [minimum, maximum]; InvalidConfig where it is absent and has no default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self.fail(name, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, name: str, default: float | None = None, *, minimum: float = 0.0, above: bool = True) -> float:
        """A number above `minimum` (or at least `minimum`, where `above` is False)."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_bearable(value):
            self.fail(name, f"a number no larger than {MAX_NUMBER:g} and, but for 0, no smaller than {MIN_NUMBER:g}")
        if value < minimum or (above and value == minimum):
            self.fail(name, f"{'above' if above else 'at least'} {minimum:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            self.fail(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty where it is absent."""
        value = self._value(name, None) if name in self else []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(name, "a list of texts")
        return tuple(value)

    def section(self, name: str) -> Fields | None:
        """A nested object; None where it is absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Fields(value, f"{self._source}: {name}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same fields, those of `defaults` where one is not written."""
        return Fields({**defaults, **self._values}, self._source)

    def _value(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value


def read_fields(path: Path) -> Fields:
    """The object in a JSON file. Raises InvalidConfig: unreadable, too large, not JSON, not an object."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidConfig(f"{path} is larger than {MAX_FILE_BYTES} bytes; it can't be a configuration.")
        if not path.is_file():
            raise InvalidConfig(f"{path} is not a file.")  # a pipe or a device can be read for ever
        values = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise InvalidConfig(f"{path} is missing; the folder must be a Hugging Face checkpoint.") from None
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InvalidConfig(f"{path} must hold a JSON object, not {shown(values)}.")
    return Fields(values, path.name)


def shown(value: Any) -> str:
    """A value as an error message shows it, cut to a bearable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _is_bearable(value: float) -> bool:
    return value == 0 or MIN_NUMBER <= abs(value) <= MAX_NUMBER
