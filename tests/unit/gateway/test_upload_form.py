from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.gateway.errors import ApiError
from pipeline.gateway.uploads import Upload, UploadForm
from pipeline.settings import Settings

SETTINGS = Settings(max_upload_bytes=2_000, max_batch_file_bytes=1_000)


def body(content: bytes, *, purpose: str = "batch", name: str = "in.jsonl") -> bytes:
    return (
        f'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + b"".join([content, b"\r\n--edge--\r\n"])


def read(chunks: list[bytes]) -> tuple[Upload, bytes]:
    form = UploadForm("multipart/form-data; boundary=edge", SETTINGS)
    content = bytearray()
    for chunk in chunks:
        form.feed(chunk)
        content += form.take()
    return form.finish(), bytes(content)


@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from([b"x", b"\r\n", b"--edge", b"\r\n--edg", b"-", b"\x00\xff"])).map(b"".join),
    data=st.data(),
)
def test_a_file_is_the_same_wherever_the_network_cuts_it(content: bytes, data: st.DataObject) -> None:
    while b"\r\n--edge" in content:  # what is left around one may be another
        content = content.replace(b"\r\n--edge", b"")
    whole = body(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    upload, received = read(chunks)

    assert received == content
    assert upload == Upload(filename="in.jsonl", purpose="batch", num_bytes=len(content), expires_after_seconds=None)


@pytest.mark.parametrize(("purpose", "limit"), [("batch", 1_000), ("vision", 2_000)])
def test_the_limit_is_the_one_of_the_purpose(purpose: str, limit: int) -> None:
    read([body(b"x" * limit, purpose=purpose)])
    with pytest.raises(ApiError, match="too large") as caught:
        read([body(b"x" * (limit + 1), purpose=purpose)])
    assert (caught.value.status, caught.value.code) == (413, "file_too_large")


def test_a_file_that_is_too_long_is_refused_as_soon_as_it_is() -> None:
    form = UploadForm("multipart/form-data; boundary=edge", SETTINGS)
    form.feed(body(b"x" * 900)[:-12])
    with pytest.raises(ApiError, match="too large"):
        form.feed(b"x" * 101)
    assert len(form.take()) <= 1_000


def test_a_length_that_is_said_is_believed() -> None:
    form = UploadForm("multipart/form-data; boundary=edge", SETTINGS)
    form.expect(2_000)
    with pytest.raises(ApiError, match="too large"):
        form.expect(10**9)


NAMES = {
    "a.jsonl": "a.jsonl",
    "../../a": "a",
    "c:\\b\\a.txt": "a.txt",
    "": "upload",
    "a\tb": "ab",
    "dir/": "upload",
}


@pytest.mark.parametrize(("name", "kept"), NAMES.items())
def test_a_name_is_no_path(name: str, kept: str) -> None:
    assert read([body(b"", name=name)])[0].filename == kept


@settings(deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_a_mistake_of_the_client_and_no_crash(noise: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read([b"--edge\r\n" + noise, os.urandom(5)])
    assert caught.value.status == 400


def test_an_unknown_field_is_named_without_control_characters() -> None:
    with pytest.raises(ApiError) as caught:
        read(
            [b'--edge\r\nContent-Disposition: form-data; name="up\0to/you' + b"x" * 100 + b'"\r\n\r\n1\r\n--edge--\r\n']
        )
    assert caught.value.param == "upto/you" + "x" * 56
    assert "\0" not in caught.value.message
