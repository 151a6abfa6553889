"""Tenants as a label: the top ones by name, and all others as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pipeline.telemetry.metrics.control_names import OTHER_TENANTS


class TopTenants:
    """Names of the tenants with the most tokens; told anew with every reading of usage."""

    def __init__(self, num_tenants: int) -> None:
        self._num_tenants = num_tenants
        self._names: Mapping[str, str] = {}

    def choose(self, num_tokens: Mapping[str, float], names: Mapping[str, str]) -> None:
        """By tokens, and by id where they are equal. `names` has every tenant's name by its id."""
        by_rank = sorted(num_tokens, key=lambda tenant_id: (-num_tokens[tenant_id], tenant_id))
        self._names = {tenant_id: names[tenant_id] for tenant_id in by_rank[: self._num_tenants] if tenant_id in names}

    def label(self, tenant_id: str) -> str:
        return self._names.get(tenant_id, OTHER_TENANTS)


class TenantCounter:
    """A counter by tenant and further labels, of totals that only grow.

    A named tenant's series is its total, whoever reads it and since when. Of the others it is what came since this
    process began to count: who is named today may be one of them tomorrow, and no series may count back, nor jump.
    """

    def __init__(self, tenants: TopTenants) -> None:
        self._tenants = tenants
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._others: dict[tuple[str, ...], float] = defaultdict(float)
        self._has_begun = False

    def count(self, totals: Mapping[tuple[str, tuple[str, ...]], float]) -> dict[tuple[str, tuple[str, ...]], float]:
        """`totals` by tenant's id and further labels; returns values by tenant's label and further labels."""
        named: dict[tuple[str, tuple[str, ...]], float] = {}
        for (tenant_id, rest), total in totals.items():
            before = self._totals.get((tenant_id, rest), 0.0 if self._has_begun else total)
            total = max(total, before)  # roll-ups that were set right may have come to less
            self._totals[tenant_id, rest] = total
            label = self._tenants.label(tenant_id)
            if label == OTHER_TENANTS:
                self._others[rest] += total - before
            else:
                named[label, rest] = total
        self._has_begun = True
        return named | {(OTHER_TENANTS, rest): value for rest, value in self._others.items()}
