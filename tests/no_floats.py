"""Money is never a float: finds whatever makes, names or reads one. Run by `make lint` on `pipeline/billing`.

python tests/no_floats.py FOLDER...
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Names that stand for binary fractions, wherever they come from.
_NAMES: Final = frozenset(
    {"float", "complex", "Float", "Double", "REAL", "DOUBLE_PRECISION", "math", "cmath", "random"}
)


@dataclass(frozen=True, slots=True)
class Finding:
    line: int
    found: str


def find_floats(source: str) -> list[Finding]:
    """Of a module: literals, names and calls. What divides integers is for mypy to see: no amount is of its type."""
    found = [one for node in ast.walk(ast.parse(source)) for one in _of_node(node)]
    return sorted(found, key=lambda one: (one.line, one.found))


def _of_node(node: ast.AST) -> Iterator[Finding]:
    match node:
        case ast.Constant(value=float() | complex() as value):
            yield Finding(node.lineno, f"the literal {value}")
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in _NAMES:
            yield Finding(node.lineno, f"the name {name}")
        case ast.alias(name=name) if name.partition(".")[0] in _NAMES:
            yield Finding(node.lineno, f"the import of {name}")


def main(folders: list[str]) -> int:
    """Print what is found; the exit code is 1 if there is anything."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    if not paths:
        print(f"No module in {', '.join(folders) or 'no folder'}: name folders of Python.", file=sys.stderr)
        return 2
    lines = [
        f"{path}:{finding.line}: {finding.found}: money is never a float"
        for path in paths
        for finding in find_floats(path.read_text("utf-8"))
    ]
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
