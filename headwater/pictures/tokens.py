"""Texts: every piece of a word on the colour of its relevance, as HTML for notebooks and as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from headwater.pictures.layout import (
    HEAD,
    WIDTH,
    add_axes,
    add_colour_bar,
    foot,
    is_dark,
    percent_scale,
    style_for,
    titled_canvas,
    zero_colour,
)
from headwater.pictures.pieces import Piece, pieces
from headwater.pictures.wrapping import Place, font, letters_without_font, wrapped
from headwater.report.images import Shown, Style, as_png, shown

_FOR, _AGAINST, _STRONGEST = "214, 58, 51", "45, 115, 200", 0.8
"""Red, blue, and their largest opacity: black text on white and white text on black both keep a contrast of 4.5."""
_RIGHT, _PAD = 1.0, 0.1  # inches: for the colour bar, and around the text
_LINE = 0.25  # inches from line to line


def tokens_html(tokens: Sequence[str], relevance: npt.ArrayLike, *, title: str, note: str = "") -> str:
    """Write a text with each piece on the colour of its relevance, as HTML.

    Red speaks for the class and blue against it, more opaque the stronger. The page's own background and text colours
    show through, so it reads in light and in dark notebooks. A piece's tooltip has its tokens and its relevance. It is
    one element with inline styles, and needs no style sheet, script or file.

    Args:
        tokens: as the tokenizer has them, L of them; see :func:`pieces` for how they become words.
        relevance: of each token, ``(L,)``.
        title: the explained class, say; stands over the text.
        note: stands under it; ``{sum}`` in it becomes the sum of the relevance.

    Raises:
        InputError: no tokens, not one number per token, numbers that are not finite.

    >>> "&lt;b&gt;" in tokens_html(["a", "<b>"], [0.5, -0.25], title="spam")
    True
    """
    parts = pieces(tokens, relevance)
    view = _view(parts, None)
    values = view.values
    top, percent = float(view.norm.vmax or 1.0), percent_scale(values)
    words = list[Markup]()
    for piece in parts:
        share = "" if percent is None else f" ({piece.relevance * percent:.1f} % of the sum)"
        opacity = _STRONGEST * min(1.0, abs(piece.relevance) / top)
        words.append(
            Markup(
                '{}<span title="{}: {}{}" style="background: rgba({}, {}); border-radius: 3px{}">{}</span>{}'
            ).format(
                " " if piece.space else "",
                " ".join(_printable(token) for token in _few(piece.tokens)),
                f"{piece.relevance:.4g}",
                share,
                _FOR if piece.relevance > 0 else _AGAINST,
                f"{opacity:.3f}",
                "; font-size: 80%" if piece.special else "",
                piece.text,
                Markup("<br>") if piece.ends_line else "",
            )
        )
    frame = Markup(
        '<div style="font-family: sans-serif; max-width: 60em"><div style="font-weight: bold">{}</div>'
        '<div dir="auto" style="line-height: 1.8; margin: 0.4em 0; white-space: pre-wrap; overflow-wrap: anywhere">{}'
        "</div>{}{}</div>"
    )
    below = note.replace("{sum}", f"{values.sum():.4g}")
    written = Markup('<div style="font-size: 85%">{}</div>').format(below) if below else ""
    return str(frame.format(title, Markup("").join(words), _legend(view, top), written))


def tokens_figure(
    tokens: Sequence[str],
    relevance: npt.ArrayLike,
    *,
    title: str,
    note: str = "",
    style: Style | None = None,
) -> bytes:
    """Draw a text in wrapped lines with each piece on the colour of its relevance, as PNG.

    Letters that no installed font has are drawn as boxes, and the note says how many; :func:`tokens_html` leaves fonts
    and the order of right-to-left scripts to the browser. Of a text of more than 200 lines the first are drawn.

    Args:
        tokens: as the tokenizer has them, L of them; see :func:`pieces` for how they become words.
        relevance: of each token, ``(L,)``.
        title: stands over the figure.
        note: stands under it; ``{sum}`` in it becomes the sum of the relevance drawn.
        style: colours and sign.

    Raises:
        InputError: no tokens, not one number per token, numbers that are not finite.

    >>> tokens_figure(["Great", "film", "!"], [0.5, 0.1, 0.2], title="positive")[1:4]
    b'PNG'
    """
    parts = pieces(tokens, relevance)
    places = wrapped(parts, WIDTH - _RIGHT - 0.05 - 2 * _PAD)
    remarks = [note]
    if len(places) < len(parts):
        remarks.append(f"The first {len(places)} of {len(parts)} pieces.")
    missing = letters_without_font(parts[: len(places)])
    if missing:
        remarks.append(f"No installed font has {missing} of the letters; they are boxes.")
    note = "  ".join(remark for remark in remarks if remark)
    view = _view(parts[: len(places)], style)
    bottom = foot(note)
    tall = max((places[-1].line + 1) * _LINE + 2 * _PAD, 0.9)  # for the colour bar
    canvas = titled_canvas(HEAD + tall + bottom, title, note, view.sum)
    axis = add_axes(canvas, 0.05, bottom, WIDTH - _RIGHT - 0.05, tall)
    _draw_text(axis, parts, places, view, tall)
    bar = min(tall, 4.0)
    place = add_axes(canvas, WIDTH - _RIGHT + 0.08, bottom + tall - bar, 0.13, bar)
    add_colour_bar(canvas, place, view, "relevance per\ntoken")
    return as_png(canvas)


def _view(parts: Sequence[Piece], style: Style | None) -> Shown:
    """Colours of the pieces, in the range of the text alone: tokens such as ``[CLS]`` often have far more relevance."""
    style = style_for(len(parts), style)
    values = np.array([piece.relevance for piece in parts])
    whole = shown(values, style)
    text = whole.values[[not piece.special for piece in parts]]
    if not text.any():
        return whole
    view = shown(text, replace(style, sign="signed") if whole.signed else style)
    low, high = view.norm.vmin or 0.0, view.norm.vmax or 0.0
    above, below = bool(values.max() > high), bool(values.min() < low)
    return replace(view, values=whole.values, clipped=above, below=below)


def _legend(view: Shown, top: float) -> Markup:
    """What the colours mean, and the relevance at their ends."""
    left = f"against {-top:.3g}{' and less' if view.below else ''}" if view.signed else "0"
    right = f"{top:.3g}{' and more' if view.clipped else ''}{' for' if view.signed else ''}"
    start = f"rgba({_AGAINST}, {_STRONGEST}), " if view.signed else ""
    return Markup(
        '<div style="font-size: 85%">relevance per token: {} <span style="display: inline-block; width: 8em; '
        "height: 0.8em; border-radius: 3px; background: linear-gradient(to right, {}rgba(128, 128, 128, 0), "
        'rgba({}, {}))"></span> {}</div>'
    ).format(left, start, _FOR, _STRONGEST, right)


def _few(tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tokens if len(tokens) <= 4 else (tokens[0], "…", tokens[-1])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _draw_text(axis: Axes, parts: Sequence[Piece], places: Sequence[Place], view: Shown, tall: float) -> None:
    """The pieces of a text, each on its colour; the panel has the colour of zero relevance."""
    axis.set_xlim(0, WIDTH - _RIGHT - 0.05)
    axis.set_ylim(tall, 0)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(color="0.5", linewidth=0.5)
    axis.set_facecolor(zero_colour(view))
    for piece, value, place in zip(parts, view.values, places, strict=False):
        colour = view.colormap(float(view.norm(value)))
        left, top = _PAD + place.left, _PAD + place.line * _LINE
        # Colours stop short of each other, so that the pieces of a word can be told apart.
        size = (place.width - 0.008, _LINE - 0.03)
        axis.add_patch(Rectangle((left, top + 0.015), *size, facecolor=colour, linewidth=0))
        ink = "white" if is_dark(colour) else "black"
        baseline = top + 0.72 * _LINE
        axis.text(left, baseline, place.text, fontproperties=font(piece.special), color=ink, parse_math=False)
