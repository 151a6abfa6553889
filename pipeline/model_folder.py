"""From what a user calls a model to the folder that holds it. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.errors import UserError

#: Configuration, weights and tokenizer; neither pickles nor the formats of other engines.
_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer*")
#: Second copies of the weights, as their makers' own tools read them.
_COPIES = ("consolidated*", "original/*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class ModelNotFound(UserError):
    """There is no such model."""


def resolve_model(name_or_path: str) -> Path:
    """The folder of a model in the Hugging Face layout.

    A local folder is used as it is, without a network. Anything of the form `owner/name` is fetched from the hub, or
    found in its cache. Raises ModelNotFound, saying what was looked for and what to do.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} has no config.json; a model is a folder in the Hugging Face layout.")
        return folder.resolve()
    if folder.exists():
        raise ModelNotFound(f"{folder} is a file; a model is a folder in the Hugging Face layout.")
    if not _HUB_NAME.fullmatch(name_or_path):
        raise ModelNotFound(
            f"{name_or_path} is neither a folder nor a name of the form owner/name on the Hugging Face hub."
        )
    return _fetch(name_or_path)


def _fetch(name: str) -> Path:
    try:
        fetched = snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_COPIES))
    except GatedRepoError:
        raise ModelNotFound(
            f"{name} asks for its licence to be accepted: do so on the hub, and log in with `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise ModelNotFound(
            f"There is no folder {name} here, and no such model on the Hugging Face hub; "
            "check its name, or log in with `hf auth login` if it is private."
        ) from None
    except (LocalEntryNotFoundError, IncompleteSnapshotError, HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"{name} is not a folder here, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the network, or download the model and give its path."
        ) from error
    folder = Path(fetched)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{name} on the Hugging Face hub has no config.json; it is no model in its layout.")
    return folder
