from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from running_gateways import Tenant, error_of, wait_for
from sqlalchemy import func, text, update

from pipeline.settings import get_settings
from pipeline.tables import File
from pipeline.tables.session import transaction

LINE = b'{"custom_id": "a"}\n'


def upload(tenant: Tenant, content: bytes = LINE, **options: object) -> str:
    return tenant.client.files.create(file=("in.jsonl", content), purpose="batch", **options).id  # type: ignore[arg-type]


def blobs() -> list[Path]:
    folder = Path(get_settings().storage_url.removeprefix("file://"))
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_comes_back_as_it_was_uploaded(acme: Tenant) -> None:
    content = os.urandom(3_000_000)

    file = acme.client.files.create(file=("some name.jsonl", content), purpose="batch")

    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "some name.jsonl", "batch")
    assert file.status == "processed"
    assert file.expires_at == file.created_at + 30 * 86_400
    assert acme.client.files.retrieve(file.id) == file
    answer = acme.client.files.content(file.id)
    assert answer.content == content
    assert answer.response.headers["content-length"] == str(len(content))
    assert "some%20name.jsonl" in answer.response.headers["content-disposition"]


def test_an_empty_file_is_kept(acme: Tenant) -> None:
    file_id = upload(acme, b"")
    assert acme.client.files.content(file_id).content == b""


def test_a_name_is_kept_without_its_folders_and_control_characters(acme: Tenant) -> None:
    def name_of(filename: str) -> str:
        return acme.client.files.create(file=(filename, LINE), purpose="batch").filename

    assert name_of("../../etc/pässwörd") == "pässwörd"
    assert name_of("C:\\batch.jsonl") == "batch.jsonl"
    assert len(name_of("x" * 999)) == 255


def test_the_age_at_which_a_file_expires_can_be_chosen(acme: Tenant) -> None:
    file = acme.client.files.create(
        file=("a.jsonl", LINE), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    assert acme.client.files.create(file=("a.txt", LINE), purpose="user_data").expires_at is None


def test_an_expired_file_is_gone(acme: Tenant) -> None:
    file_id = upload(acme)
    with transaction() as session:
        session.execute(update(File).values(expires_at=func.now() - text("interval '1 second'")))

    with pytest.raises(openai.NotFoundError):
        acme.client.files.retrieve(file_id)
    assert acme.client.files.list().data == []


def test_a_deleted_file_is_gone_with_its_blob(acme: Tenant) -> None:
    file_id = upload(acme)
    assert len(blobs()) == 1

    deleted = acme.client.files.delete(file_id)

    assert (deleted.id, deleted.object, deleted.deleted) == (file_id, "file", True)
    assert blobs() == []
    for call in (acme.client.files.retrieve, acme.client.files.content, acme.client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file_id)
        assert caught.value.body["message"] == f"No such File object: {file_id}"  # type: ignore[index]


def test_the_input_of_a_batch_that_has_not_read_it_is_not_deleted(acme: Tenant) -> None:
    file_id = upload(acme)
    acme.client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")

    with pytest.raises(openai.ConflictError, match="still validating"):
        acme.client.files.delete(file_id)
    assert acme.client.files.content(file_id).content == LINE


def test_files_are_listed_newest_first_in_pages(acme: Tenant) -> None:
    ids = [upload(acme) for _ in range(5)]

    first = acme.client.files.list(limit=2)
    assert ([file.id for file in first.data], first.has_more) == ([ids[4], ids[3]], True)
    assert [file.id for file in acme.client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in acme.client.files.list(order="asc")] == ids
    assert [file.id for file in acme.client.files.list(order="asc", after=ids[2])] == ids[3:]
    last = acme.client.files.list(after=ids[1])
    assert ([file.id for file in last.data], last.has_more) == ([ids[0]], False)
    raw = acme.http.get("/v1/files", params={"limit": 2}).json()
    assert (raw["object"], raw["first_id"], raw["last_id"], raw["has_more"]) == ("list", ids[4], ids[3], True)


def test_files_are_listed_by_purpose(acme: Tenant) -> None:
    batch_id = upload(acme)
    other = acme.client.files.create(file=("a.txt", b"x"), purpose="user_data").id
    assert [file.id for file in acme.client.files.list(purpose="user_data")] == [other]
    assert [file.id for file in acme.client.files.list(purpose="batch")] == [batch_id]
    assert acme.client.files.list(purpose="vision").data == []


def test_a_list_goes_on_after_a_file_that_was_deleted(acme: Tenant) -> None:
    ids = [upload(acme) for _ in range(4)]
    for file in acme.client.files.list(limit=1):
        acme.client.files.delete(file.id)
    assert acme.client.files.list().data == []
    assert len(ids) == 4


def test_a_list_refuses_what_it_does_not_know(acme: Tenant, subtests: pytest.Subtests) -> None:
    for query in ("limit=0", "limit=10001", "limit=x", "order=up", "after=x"):
        with subtests.test(query):
            response = acme.http.get(f"/v1/files?{query}")
            assert (response.status_code, error_of(response)["param"]) == (400, query.split("=")[0])


def form(*parts: tuple[str, str], file: bytes | None = LINE) -> bytes:
    """A multipart body with the boundary `x`."""
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in parts
    )
    if file is not None:
        body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + file + b"\r\n"
    return body + b"--x--\r\n"


FORM = {"content-type": "multipart/form-data; boundary=x"}
PURPOSE = ("purpose", "batch")
EXPIRY = ("expires_after[anchor]", "created_at")


REFUSED: list[tuple[bytes, str | None, str]] = [
    (form(), "purpose", "Missing required parameter: 'purpose'"),
    (form(PURPOSE, file=None), "file", "Missing required parameter: 'file'"),
    (form(("purpose", "world domination")), "purpose", "'world domination' is not one of assistants, batch"),
    (form(("purpose", "batch_output")), "purpose", "is not one of"),
    (form(("purpose", "x" * 2000)), "purpose", "too long"),
    (form(PURPOSE, PURPOSE), "purpose", "twice"),
    (form(PURPOSE, ("color", "red")), "color", "Unknown parameter: 'color'"),
    (form(PURPOSE, ("file", "x"), file=None), "file", "must be a file with a name"),
    (form(PURPOSE, EXPIRY, ("expires_after[seconds]", "3599")), "expires_after.seconds", "3600"),
    (form(PURPOSE, EXPIRY, ("expires_after[seconds]", "2592001")), "expires_after.seconds", "2592000"),
    (form(PURPOSE, EXPIRY), "expires_after.seconds", "required"),
    (form(PURPOSE, ("expires_after[anchor]", "now")), "expires_after.anchor", "created_at"),
    (form(PURPOSE)[:-9], None, "not complete"),
    (b"--y\r\n", None, "not complete"),
    (b"", None, "not complete"),
]


def test_an_upload_that_is_not_right_is_refused_and_leaves_nothing(acme: Tenant, subtests: pytest.Subtests) -> None:
    for body, param, message in REFUSED:
        with subtests.test(message, body=body[:200]):
            response = acme.http.post("/v1/files", content=body, headers=FORM)

            error = error_of(response)
            assert (response.status_code, error["param"]) == (400, param)
            assert message in str(error["message"])
    assert blobs() == []
    assert acme.client.files.list().data == []


def test_an_upload_of_another_kind_is_refused(acme: Tenant) -> None:
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 999):
        response = acme.http.post("/v1/files", content=b"{}", headers={"content-type": kind})
        assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")


def test_fields_may_follow_the_file(acme: Tenant) -> None:
    body = form(file=LINE)[: -len(b"--x--\r\n")] + form(PURPOSE, file=None)
    response = acme.http.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 200, response.text
    assert acme.client.files.content(response.json()["id"]).content == LINE


@pytest.fixture
def small_limits(set_before_start: Callable[[str, object], None]) -> None:
    set_before_start("MAX_BATCH_FILE_BYTES", 300_000)
    set_before_start("MAX_UPLOAD_BYTES", 500_000)


def test_a_file_of_the_greatest_length_is_accepted(small_limits: None, acme: Tenant) -> None:
    assert acme.client.files.create(file=("a", b"x" * 300_000), purpose="batch").bytes == 300_000
    assert acme.client.files.create(file=("a", b"x" * 500_000), purpose="user_data").bytes == 500_000


@pytest.mark.parametrize(("purpose", "size"), [("batch", 300_001), ("user_data", 500_001), ("batch", 5_000_000)])
def test_a_file_that_is_too_long_is_refused_and_leaves_nothing(
    small_limits: None, acme: Tenant, purpose: str, size: int
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        acme.client.files.create(file=("a", b"x" * size), purpose=purpose)  # type: ignore[arg-type]

    assert (caught.value.status_code, caught.value.code, caught.value.param) == (413, "file_too_large", "file")
    assert str(300_000 if purpose == "batch" else 500_000) in caught.value.message
    assert blobs() == []
    assert acme.client.files.list().data == []


def test_a_body_without_a_length_is_limited_too(small_limits: None, acme: Tenant) -> None:
    def endless() -> Iterator[bytes]:
        yield form(PURPOSE, file=b"")[: -len(b"\r\n--x--\r\n")]
        for _ in range(100):
            yield b"x" * 100_000

    response = acme.http.post("/v1/files", content=endless(), headers=FORM)

    assert (response.status_code, error_of(response)["code"]) == (413, "file_too_large")
    assert blobs() == []


def test_a_client_that_goes_away_leaves_nothing(acme: Tenant, address: str) -> None:
    class Gone(Exception):
        pass

    def broken() -> Iterator[bytes]:
        yield form(PURPOSE, file=b"x" * 3_000_000)[:2_000_000]
        raise Gone

    with httpx2.Client(base_url=address, headers=acme.http.headers) as http, pytest.raises(Gone):
        http.post("/v1/files", content=broken(), headers=FORM)

    upload(acme)  # the server has seen the connection close by then, or sees it soon
    wait_for(lambda: len(blobs()) == 1)


def test_storage_that_can_not_be_written_is_a_503_and_nothing_is_recorded(
    set_before_start: Callable[[str, object], None], tmp_path: Path, acme: Tenant
) -> None:
    (tmp_path / "taken").write_text("a file, so that no folder can be made")
    set_before_start("STORAGE_URL", f"file://{tmp_path}/taken/blobs")

    response = acme.http.post("/v1/files", files={"file": ("a", LINE)}, data={"purpose": "batch"})

    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "tell the operator" in str(error_of(response)["message"])
    assert str(tmp_path) not in response.text
    assert acme.client.files.list().data == []


def test_a_blob_that_is_lost_is_a_503(acme: Tenant) -> None:
    file_id = upload(acme)
    blobs()[0].unlink()
    response = acme.http.get(f"/v1/files/{file_id}/content")
    assert (response.status_code, error_of(response)["code"]) == (503, "service_unavailable")


def test_the_client_of_openai_reads_every_field(acme: Tenant) -> None:
    raw = acme.client.files.with_raw_response.create(file=("a.jsonl", io.BytesIO(LINE)), purpose="batch")
    known = set(type(raw.parse()).model_fields)
    assert set(json.loads(raw.text)) == known
