"""Files, as the API shows them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.tables import File

#: Of an input file of a batch.
BATCH_PURPOSE = "batch"
#: What an upload can be for. Only `batch` has a use here; the others are kept for their owner.
UPLOAD_PURPOSES = ("assistants", BATCH_PURPOSE, "fine-tune", "vision", "user_data", "evals")

MIN_EXPIRY_SECONDS = 3_600
MAX_EXPIRY_SECONDS = 2_592_000


class ExpiresAfter(BaseModel):
    """When a file is to expire by itself: between an hour and 30 days after it was created."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    #: Of an output or error file: 0 until its batch has ended.
    bytes: int
    #: Unix seconds, as all moments are.
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: File) -> Self:
        return cls(
            id=file.id,
            bytes=file.num_bytes,
            created_at=int(file.created_at.timestamp()),
            expires_at=None if file.expires_at is None else int(file.expires_at.timestamp()),
            filename=file.filename,
            purpose=file.purpose,
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
