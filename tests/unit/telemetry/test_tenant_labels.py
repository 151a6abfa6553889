from __future__ import annotations

from pipeline.telemetry.metrics.service.top_tenants import TenantCounter, TopTenants

NAMES = {"t1": "acme", "t2": "globex", "t3": "initech"}
Totals = dict[str, float]


class Counted:
    def __init__(self, num_tenants: int) -> None:
        self.tenants = TopTenants(num_tenants)
        self.counter = TenantCounter(self.tenants)

    def count(self, totals: Totals) -> Totals:
        self.tenants.choose(totals, NAMES)
        counted = self.counter.count({(tenant_id, ("tiny",)): total for tenant_id, total in totals.items()})
        return {tenant: value for (tenant, _), value in counted.items()}


def test_only_the_top_tenants_have_a_series_of_their_own() -> None:
    counted = Counted(2)
    assert counted.count({"t1": 50, "t2": 10, "t3": 30}) == {"acme": 50, "initech": 30, "_other": 0}
    assert counted.count({"t1": 60, "t2": 15, "t3": 30}) == {"acme": 60, "initech": 30, "_other": 5}
    assert counted.tenants.label("t2") == "_other"
    assert Counted(0).count({"t1": 5}) == {"_other": 0}


def test_no_series_counts_back_or_jumps_when_another_becomes_a_top_tenant() -> None:
    counted = Counted(1)
    assert counted.count({"t1": 50, "t2": 10}) == {"acme": 50, "_other": 0}
    assert counted.count({"t1": 52, "t2": 40}) == {"acme": 52, "_other": 30}
    assert counted.count({"t1": 53, "t2": 90}) == {"globex": 90, "_other": 31}, "acme's one token is now another's"
    assert counted.count({"t1": 53, "t2": 70}) == {"globex": 90, "_other": 31}, "what was set right counts nothing back"
