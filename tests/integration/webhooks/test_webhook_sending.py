from __future__ import annotations

import threading
from pathlib import Path

import pytest
from certificates import Authority
from running_gateways import wait_for
from seeds import seed_tenant, sql
from submitting import Bench
from webhook_endpoints import deliveries, end, listen, make_due, tell
from webhook_receivers import Receiver, receiver

from pipeline.settings import PREFIX, get_settings
from pipeline.webhooks import delivering, sending
from pipeline.webhooks.delivering import deliver_due


def test_no_private_address_is_called_unless_it_was_allowed(
    bench: Bench, hooks: Receiver, settings_env: pytest.MonkeyPatch
) -> None:
    port = hooks.url.split(":")[2].split("/")[0]
    settings_env.setenv("http_proxy", hooks.url)
    settings_env.setenv("all_proxy", hooks.url)
    for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        listen(bench.tenant, f"http://{host}:{port}/")
    settings_env.setenv(f"{PREFIX}WEBHOOK_PRIVATE_NETWORKS", "")
    get_settings.cache_clear()
    end(bench)

    assert deliver_due() == {"delivered": 0, "failed": 5}

    assert hooks.received == []
    errors = {row["attempts"][0]["error"] for row in deliveries(bench)}
    assert errors == {
        "The host has an address that is not public. Use another, or ask the operator to allow its network."
    }


def test_the_address_that_was_judged_is_the_one_that_is_called(
    bench: Bench, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is another machine's at the second look-up."""
    port = hooks.url.split(":")[2].split("/")[0]
    listen(bench.tenant, f"http://rebinding.invalid:{port}/")
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.9"]

    monkeypatch.setattr(sending, "resolve", resolve)
    end(bench)

    assert deliver_due()["delivered"] == 1
    assert looked_up == ["rebinding.invalid"]
    assert hooks.received[0].headers["host"] == f"rebinding.invalid:{port}"


@pytest.mark.parametrize("host", ["exa..mple.com", "x" * 70 + ".com"])
def test_a_host_that_is_none_is_a_failure_like_any_other(host: str, bench: Bench) -> None:
    """It can't even be encoded for a look-up."""
    message = sending.Message(f"https://{host}/", {}, b"{}")
    answer = sending.send(message, get_settings(), 3.0)
    assert answer.status is None
    assert answer.error


def test_certificates_are_checked_by_the_name_and_not_by_the_address(
    bench: Bench, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path / "certificates")
    issued = authority.issue("localhost")
    both = tmp_path / "both.pem"
    both.write_bytes(issued.path.read_bytes() + issued.key.read_bytes())
    with receiver(str(both)) as hooks:
        listen(bench.tenant, hooks.url)
        end(bench)
        assert deliver_due() == {"delivered": 0, "failed": 1}
        assert "certificate" in str(deliveries(bench)[0]["attempts"][0]["error"])
        assert hooks.received == []
        settings_env.setenv("SSL_CERT_FILE", str(authority.path))
        make_due(bench)
        assert deliver_due()["delivered"] == 1


def test_a_receiver_that_hangs_keeps_others_waiting_for_a_bounded_time_alone(
    bench: Bench, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "ATTEMPT_SECONDS", 0.5)
    with receiver() as slow:
        slow.hangs = True
        listen(bench.tenant, slow.url)
        listen(bench.tenant, hooks.url)
        for _ in range(6):
            end(bench)
        assert deliver_due() == {"delivered": 6, "failed": 6}
    errors = {row["attempts"][0]["error"] for row in deliveries(bench) if row["status"] == "pending"}
    assert errors == {"There was no answer within 0.5 s."}
    assert len(hooks.received) == 6


def test_receivers_that_hang_leave_room_to_those_of_others(
    bench: Bench, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("ATTEMPT_SECONDS", 60), ("_MAX_AT_ONCE", 8), ("_MAX_PER_TENANT", 6)):
        monkeypatch.setattr(delivering, name, number)
    with receiver() as slow:
        slow.hangs = True
        for _ in range(2):
            listen(bench.tenant, slow.url)
        batch_id = end(bench)
        for _ in range(5):
            tell(bench, batch_id)
        other = seed_tenant(bench.engine, "globex")
        bench.execute("UPDATE batches SET tenant_id = :id, project_id = NULL", id=other.id)
        listen(other, hooks.url)
        for _ in range(12):
            tell(bench, batch_id)
        delivery = threading.Thread(target=deliver_due)
        delivery.start()
        try:
            # All of these, although the others that were due before are still waited for; and what comes later too.
            wait_for(lambda: len(hooks.received) == 12)
            tell(bench, batch_id)
            wait_for(lambda: len(hooks.received) == 13)
            assert len(slow.received) == 6  # of 12: at most four to each endpoint, and six of the tenant's
            wait_for(lambda: [row["status"] for row in deliveries(bench)].count("pending") == 12)
        finally:
            slow.hangs = False
            slow.released.set()
            delivery.join()
    assert len(slow.received) == 12


def test_no_transaction_is_open_while_a_receiver_is_waited_for(bench: Bench, hooks: Receiver) -> None:
    hooks.hangs = True
    listen(bench.tenant, hooks.url)
    end(bench)
    sending_now = threading.Thread(target=deliver_due)
    sending_now.start()
    while not hooks.received:
        assert sending_now.is_alive()
    num_open = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid()"
    )
    wait_for(lambda: sql(bench.engine, num_open) == [(0,)], 3)  # but for a look at what has become due meanwhile
    assert deliver_due() == {"delivered": 0, "failed": 0}, "one thread at a time"
    hooks.hangs = False
    hooks.released.set()
    sending_now.join()
