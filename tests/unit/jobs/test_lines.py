from __future__ import annotations

import json

from pipeline.jobs.lines import error_line, invalid_line, output_line


def test_an_answer_has_the_shape_of_openais_output_line() -> None:
    body = '{"id":"chatcmpl-1","choices":[{"message":{"content":"naïve \\u0000 \\ud83d"}}]}'
    line = output_line(7, 'quote " and ü', body)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": "batch_req_00000000000000000000000000000007",
        "custom_id": 'quote " and ü',
        "response": {
            "status_code": 200,
            "request_id": "req_00000000000000000000000000000007",
            "body": json.loads(body),
        },
        "error": None,
    }


def test_a_failure_has_the_shape_of_openais_error_line() -> None:
    assert json.loads(error_line(8, "a", "engine_crashed", "It crashed.")) == {
        "id": "batch_req_00000000000000000000000000000008",
        "custom_id": "a",
        "response": None,
        "error": {"code": "engine_crashed", "message": "It crashed."},
    }


def test_a_skipped_line_says_where_it_is() -> None:
    line = json.loads(invalid_line("batch_1", 3, None, "invalid_json_line", None, "No JSON."))
    assert line["custom_id"] is None
    assert line["response"] is None
    assert line["error"] == {"code": "invalid_json_line", "message": "No JSON.", "param": None, "line": 3}


def test_skipped_lines_have_ids_of_their_own_that_do_not_change() -> None:
    ids = {
        json.loads(invalid_line(batch, line, None, "c", None, "m"))["id"]
        for batch in ("batch_1", "batch_2")
        for line in (1, 2)
        for _ in range(2)
    }
    assert len(ids) == 4
