"""People who have signed in to the console of a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from console_pages import Person, sign_in
from running_gateways import Tenant


@pytest.fixture
def enter(address: str, join: Callable[..., Tenant]) -> Iterator[Callable[..., Person]]:
    """Signs somebody in: a tenant by its key, or `enter(name, project=…, scopes=…)`."""
    people: list[Person] = []

    def enter(tenant: Tenant | str, **options: Any) -> Person:
        found = join(tenant, **options) if isinstance(tenant, str) else tenant
        people.append(sign_in(address, found.key))
        return people[-1]

    yield enter
    for person in people:
        person.http.close()
