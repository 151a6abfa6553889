"""For commands with `--data-dir`: the settings of the stack that runs there."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.settings import PREFIX, get_settings
from pipeline.stack.data_dir import DataDir
from pipeline.stack.state import StackState, read_state


def use_stack(folder: Path) -> StackState:
    """Make the settings of this process those of the stack that runs in `folder`, and return its state.

    Raises UserError if none runs there.
    """
    state = read_state(folder)
    flower = urlsplit(state.flower_url)
    values = {
        "DATABASE_URL": state.database_url,
        "REDIS_URL": state.redis_url,
        "STORAGE_URL": os.environ.get(PREFIX + "STORAGE_URL", DataDir(Path(state.data_dir)).blobs.as_uri()),
        "BASE_URL": state.base_url,
        "API_KEY": state.api_key or "",
        "FLOWER_HOST": flower.hostname or "",
        "FLOWER_PORT": str(flower.port),
        "FLOWER_USER": state.flower_user,
        "FLOWER_PASSWORD": state.flower_password,
        "DATA_DIR": state.data_dir,
    }
    os.environ.update({PREFIX + name: value for name, value in values.items()})
    get_settings.cache_clear()
    return state
