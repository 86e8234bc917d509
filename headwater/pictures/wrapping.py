"""Lines of text in a figure: fonts for all letters, and where each piece stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from headwater.pictures.layout import text_width
from headwater.pictures.pieces import Piece
from headwater.report.images import fitted

_SIZE, _SMALL = 10.0, 8.0  # points of text and of special tokens
_MOST_LINES = 200
_FAMILIES = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans", "PingFang SC", "Hiragino Sans", "Microsoft YaHei"),
    *("Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic"),
    *("Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola"),
)
"""Fonts with letters that matplotlib's own lacks, where they are installed."""


@dataclass(frozen=True)
class Place:
    """Where a piece of text stands.

    Attributes:
        line: counted from 0.
        left: of its left edge, in inches.
        width: in inches.
        text: of the piece, shortened where it is longer than a line.
    """

    line: int
    left: float
    width: float
    text: str


@lru_cache
def font(special: bool) -> FontProperties:
    """Matplotlib's own font, then the installed ones that have other letters; smaller for special tokens."""
    installed = {entry.name for entry in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _FAMILIES if name in installed)]
    return FontProperties(family=families, size=_SMALL if special else _SIZE)


@lru_cache(maxsize=4096)
def _width(text: str, special: bool) -> float:
    """In inches."""
    return text_width(text, font(special))


def letters_without_font(parts: Sequence[Piece]) -> int:
    """How many different letters of a text no installed font has."""
    fonts = [get_font(findfont(FontProperties(family=name))) for name in font(special=False).get_family()]
    letters = {letter for piece in parts for letter in piece.text}
    return sum(not any(face.get_char_index(ord(letter)) for face in fonts) for letter in letters)


def wrapped(parts: Sequence[Piece], room: float) -> list[Place]:
    """Wrap a text: lines break at a space where there is one, else before a piece.

    Args:
        parts: of the text, at least one.
        room: width of a line, in inches.

    Returns:
        The place of each piece, in order; at most 200 lines, so of a longer text the first pieces.
    """
    texts = [fitted(piece.text, "", 0.97 * room, _SIZE) if len(piece.text) > 60 else piece.text for piece in parts]
    widths = [_width(text, piece.special) for text, piece in zip(texts, parts, strict=True)]
    space = _width("x x", False) - _width("xx", False)
    places = list[Place]()
    line, left = 0, 0.0
    for k, piece in enumerate(parts):
        if piece.space or k == 0:
            end = next((j for j in range(k + 1, len(parts)) if parts[j].space or parts[j - 1].ends_line), len(parts))
            word = sum(widths[k:end])
        else:
            word = widths[k]
        left += space if piece.space and left else 0.0
        if left and left + (word if word <= room else widths[k]) > room:
            line, left = line + 1, 0.0
        if line == _MOST_LINES:
            break
        places.append(Place(line, left, widths[k], texts[k]))
        line, left = (line + 1, 0.0) if piece.ends_line else (line, left + widths[k])
    return places
