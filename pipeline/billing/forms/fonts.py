"""Fonts of PDF invoices: ours has Latin, Greek, Cyrillic and more; others of the system step in for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from fpdf import FPDF

from pipeline.settings import get_settings

log = structlog.get_logger(__name__)

FAMILY: Final = "invoice"
#: Stands for a character that no font has.
MISSING: Final = "\u25a1"

_OURS: Final = Path(__file__).parent / "fonts"
#: Where systems keep fonts, and what those that cover much are called, the widest first.
_FOLDERS: Final = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
_NAMES: Final = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSans-Regular.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
)


def set_fonts(pdf: FPDF, texts: Sequence[str]) -> frozenset[str]:
    """Give `pdf` fonts for all characters of `texts`; returns those that no font has."""
    pdf.add_font(FAMILY, "", _OURS / "DejaVuSans.ttf")
    pdf.add_font(FAMILY, "B", _OURS / "DejaVuSans-Bold.ttf")
    missing = {char for text in texts for char in text if char.isprintable()} - _characters(_OURS / "DejaVuSans.ttf")
    others: list[str] = []
    for path in _others() if missing else ():
        covered = missing & _characters(path)
        if covered:
            name = f"other{len(others)}"
            for style in ("", "B"):  # whatever weight there is
                pdf.add_font(name, style, path)
            others.append(name)
            missing -= covered
        if not missing:
            break
    pdf.set_fallback_fonts(others)
    return frozenset(missing)


def shown_text(text: str, missing: frozenset[str]) -> str:
    """`text` with a box for each character that no font has, and a space for what can't be seen."""
    return "".join(MISSING if char in missing else char if char.isprintable() or char == "\n" else " " for char in text)


def _others() -> Iterator[Path]:
    """Fonts of the settings, then well-known ones of the system."""
    for name in filter(None, get_settings().invoice_fonts.split(":")):
        yield Path(name)
    found = _system_fonts()
    for name in _NAMES:
        if name in found:
            yield found[name]


@lru_cache(maxsize=1)
def _system_fonts() -> dict[str, Path]:
    return {path.name: path for folder in _FOLDERS for path in Path(folder).rglob("*") if path.name in _NAMES}


@lru_cache(maxsize=16)
def _characters(path: Path) -> frozenset[str]:
    """What a font has; nothing where it can't be read, which is logged."""
    try:
        if path.suffix.lower() == ".ttc":
            with TTCollection(path, lazy=True) as collection:
                codes = set(collection.fonts[0].getBestCmap() or {})
        else:
            with TTFont(path, lazy=True) as font:
                codes = set(font.getBestCmap() or {})
    except (OSError, TTLibError) as error:
        log.warning("a font of invoices can't be read", font=str(path), reason=str(error))
        return frozenset()
    return frozenset(map(chr, codes))
