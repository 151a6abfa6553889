"""People who have signed in to the console of a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from console_pages import Person, sign_in
from running_gateways import Tenant
from sqlalchemy import Engine

from pipeline.tables.session import transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant


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


@pytest.fixture
def operate(address: str, database: Engine) -> Iterator[Callable[..., Person]]:
    """Signs an operator in, whose tenant (`operators`) has nothing."""
    people: list[Person] = []

    def operate() -> Person:
        with transaction() as session:
            _, key = create_key(session, ensure_tenant(session, "operators").id, "operator", is_operator=True)
        people.append(sign_in(address, key))
        return people[-1]

    yield operate
    for person in people:
        person.http.close()
