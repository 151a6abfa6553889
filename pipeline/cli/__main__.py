"""`python -m pipeline.cli`: the same as `ryzanstein`, wherever the virtual environment lies."""

from __future__ import annotations

from pipeline.cli import main

if __name__ == "__main__":
    main()
