from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

from running_gateways import Tenant, error_of

from pipeline.settings import get_settings

#: Enough to be limited many times over.
GUESSES = 1_000


def test_keys_are_not_guessed_by_the_thousand_and_the_right_one_still_works(acme: Tenant) -> None:
    short_id = acme.key.split("_")[1]

    def guess(number: int) -> tuple[int, str, str | None]:
        known = short_id if number % 2 else secrets.token_hex(6)  # the id of a real key, or none
        headers = {"Authorization": f"Bearer rz_{known}_{secrets.token_hex(24)}"}
        response = acme.http.get("/v1/models", headers=headers)
        return response.status_code, str(error_of(response)["code"]), response.headers.get("retry-after")

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(guess, range(GUESSES)))

    refused = [answer for answer in answers if answer[0] == 401]
    limited = [answer for answer in answers if answer[0] == 429]
    assert len(refused) + len(limited) == GUESSES
    # The limit at once, and what came back meanwhile: one each second.
    limit = get_settings().key_failures_per_minute
    assert limit <= len(refused) < GUESSES / 2
    assert {code for _, code, _ in refused} == {"invalid_api_key"}
    assert {code for _, code, _ in limited} == {"rate_limit_exceeded"}
    assert all(seconds is not None and int(seconds) >= 1 for _, _, seconds in limited)
    assert acme.client.models.list().data == []
