"""Service classes: how soon a batch is wanted, and the completion windows that each class may have."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pipeline.schemas.windows import window_seconds
from pipeline.settings import get_settings
from pipeline.tables import ServiceClass


class ServiceTier(StrEnum):
    """OpenAI's words for a class, which a client may use in their place."""

    AUTO = "auto"  #: `standard`: nothing is moved to another class behind a client's back.
    DEFAULT = "default"  #: `standard`.
    FLEX = "flex"
    PRIORITY = "priority"


_CLASS_OF_TIER: Final = {
    ServiceTier.AUTO: ServiceClass.STANDARD,
    ServiceTier.DEFAULT: ServiceClass.STANDARD,
    ServiceTier.FLEX: ServiceClass.FLEX,
    ServiceTier.PRIORITY: ServiceClass.PRIORITY,
}


def class_of(service_class: ServiceClass | None, tier: ServiceTier | None) -> ServiceClass:
    """`standard` where neither is given. Raises ValueError, with a message for the client, where the two differ."""
    if tier is None:
        return service_class or ServiceClass.STANDARD
    if service_class is not None and service_class is not _CLASS_OF_TIER[tier]:
        raise ValueError(
            f"{service_class.value!r} and the service_tier {tier.value!r} are not the same: give one of them."
        )
    return _CLASS_OF_TIER[tier]


def check_window(window: str, service_class: ServiceClass) -> None:
    """Raises ValueError, with a message for the client, for a window that the class may not have."""
    shortest, longest = windows_of(service_class).split("-")
    if not window_seconds(shortest) <= window_seconds(window) <= window_seconds(longest):
        raise ValueError(
            f"{window[:32]!r} is no window of the service class {service_class.value!r}: its windows are from "
            f"'{shortest}' to '{longest}'."
        )


def windows_of(service_class: ServiceClass) -> str:
    """`SHORTEST-LONGEST`."""
    settings = get_settings()
    match service_class:
        case ServiceClass.PRIORITY:
            return settings.priority_windows
        case ServiceClass.STANDARD:
            return settings.standard_windows
        case ServiceClass.FLEX:
            return settings.flex_windows
