from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest

from pipeline.settings import Settings
from pipeline.signing import signing_key
from pipeline.webhooks.events import EventType, payload_of
from pipeline.webhooks.signatures import hint_of, secret_of, signed_headers


@pytest.fixture
def client() -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")


def secret(folder: Path, endpoint_id: str = "webhook_1", generation: int = 1) -> str:
    return secret_of(signing_key(Settings(signing_key_file=folder / "key.pem")), endpoint_id, generation)


def test_a_secret_is_the_same_for_ever_and_another_for_everyone_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same = {secret(tmp_path) for _ in range(3)}
    others = {secret(tmp_path, "webhook_2"), secret(tmp_path, generation=2), secret(tmp_path / "other")}
    assert len(same) == 1
    assert len(same | others) == 4
    assert all(one.startswith("whsec_") for one in same | others)
    assert hint_of("whsec_abcdefgh") == "whsec_…efgh"


@pytest.mark.parametrize("kind", EventType)
def test_the_client_of_openai_verifies_and_understands_an_event(
    client: openai.OpenAI, tmp_path: Path, kind: EventType
) -> None:
    body = payload_of("evt_1", kind, "batch_1", 1_700_000_000)
    headers = signed_headers("evt_1", int(time.time()), body, [secret(tmp_path)])
    event = client.webhooks.unwrap(body, headers, secret=secret(tmp_path))
    assert (event.type, event.id, event.object) == (kind, "evt_1", "event")
    assert type(event).__name__ == f"Batch{kind.split('.')[1].title()}WebhookEvent"
    assert event.data.id == "batch_1"  # type: ignore[union-attr]


def test_what_was_changed_or_is_old_or_of_another_is_refused(client: openai.OpenAI, tmp_path: Path) -> None:
    body, now = payload_of("evt_1", EventType.BATCH_COMPLETED, "batch_1", 1), int(time.time())
    good = signed_headers("evt_1", now, body, [secret(tmp_path)])
    for changed, headers, key in [
        (body.replace(b"batch_1", b"batch_2"), good, secret(tmp_path)),
        (body, {**good, "webhook-id": "evt_2"}, secret(tmp_path)),
        (body, signed_headers("evt_1", now - 3600, body, [secret(tmp_path)]), secret(tmp_path)),
        (body, good, secret(tmp_path, generation=2)),
    ]:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(changed, headers, secret=key)


def test_while_a_secret_is_replaced_both_are_good(client: openai.OpenAI, tmp_path: Path) -> None:
    body = payload_of("evt_1", EventType.BATCH_COMPLETED, "batch_1", 1)
    secrets = [secret(tmp_path, generation=2), secret(tmp_path)]
    headers = signed_headers("evt_1", int(time.time()), body, secrets)
    for one in secrets:
        client.webhooks.verify_signature(body, headers, secret=one)
