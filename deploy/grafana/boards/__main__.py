"""`python -m deploy.grafana.boards`: writes the files that Grafana reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from deploy.grafana.boards import BOARDS

FOLDER: Final = Path(__file__).parents[1] / "dashboards"


def files() -> dict[str, str]:
    """The content of each file by its name."""
    return {
        f"{board.uid.removeprefix('ryzanstein-')}.json": json.dumps(board.to_json(), indent=1) + "\n"
        for board in BOARDS
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content)
