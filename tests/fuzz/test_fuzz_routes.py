"""Every route of a running gateway, called with what its OpenAPI description allows and with what it forbids.

No answer is a 500, and each is as described: its status, its type, its headers and its body.
"""

from __future__ import annotations

import random

import requests
import schemathesis
from budget import Budget
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served_gateways import Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

#: The server reads no longer line than 64 KiB, and refuses it before it is a request.
_LONGEST_URL = 60_000


def test_every_answer_is_as_the_description_says(served: Served, budget: Budget) -> None:
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 12
    strategies = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in GenerationMode]
    http = requests.Session()

    def one(case: Case, luck: random.Random) -> None:
        use_known(case, served, luck)
        response = case.call(session=http, headers=served.headers)
        if len(str(response.request.url)) > _LONGEST_URL:
            return
        case.validate_response(response, checks=CHECKS)
        assert response.status_code >= 400 or not has_wrong_json(case), case.as_curl_command()
        if response.status_code == 200 and "json" in response.headers.get("content-type", [""])[0]:
            served.learn(response.json())

    with http:
        budget.run(one, case=st.one_of(strategies), luck=st.randoms(use_true_random=False))


def has_wrong_json(case: Case) -> bool:
    """A body that the description forbids. Of other parts, what is not known is ignored, as OpenAI's API does."""
    component = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    return case.media_type == "application/json" and component is not None and component.mode.is_negative


def use_known(case: Case, served: Served, luck: random.Random) -> None:
    """Most made-up ids are of nothing: have some of them be of something."""
    for name in list(case.path_parameters or {}):
        if luck.random() < 0.7:
            case.path_parameters = {**case.path_parameters, name: one_of(served.known[name], luck)}
    if case.path.endswith("/events"):  # which would go on for as long as the batch
        case.query = {**(case.query or {}), "timeout": 0}
    if isinstance(case.body, dict) and "input_file_id" in case.body and luck.random() < 0.5:
        case.body = {**case.body, "input_file_id": one_of(served.known["file_id"], luck)}


def one_of(known: list[str], luck: random.Random) -> str:
    """By a part of the list: how long it is must not change what hypothesis draws when it tries a case again."""
    return known[int(luck.random() * len(known)) % len(known)]
