"""Tokens as people read them: words joined, markers of the tokenizer gone, letters made from their bytes."""

from __future__ import annotations

import re
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from headwater.errors import InputError
from headwater.pictures.layout import numbers

_SPECIAL = re.compile(r"\[[A-Z]+\d*\]|<\|[^<>\s]+\|>|</?[A-Za-z_][^<>\s]*>")
"""``[CLS]``, ``<s>``, ``<|endoftext|>`` and the like."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's token for a byte
_LETTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [byte for byte in range(256) if byte not in _LETTERS]
_BYTES = {chr(byte): byte for byte in _LETTERS} | {chr(256 + k): byte for k, byte in enumerate(_REST)}
"""Byte-level BPE's letter for each byte, as GPT-2 chose them: a space is Ġ, a line feed Ċ."""
_NO_SPACE_BEFORE = ".,!?;:)]}…'\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_NO_SPACE_AFTER = "([{'\N{LEFT SINGLE QUOTATION MARK}\N{LEFT DOUBLE QUOTATION MARK}"
_JOINERS = "\u200c\u200d"  # not printable by themselves, but emoji and some scripts are made with them


@dataclass(frozen=True)
class Piece:
    """A part of a text with its own relevance.

    Attributes:
        text: as people read it, never empty: a lone space is ``"␣"``, a line feed ``"⏎"``, nothing ``"·"``.
        relevance: sum over its tokens.
        tokens: as the tokenizer has them; several where one letter is made of them, or where a special token repeats.
        space: a space stands before it.
        special: it is a token such as ``[CLS]``, not a part of the text.
        ends_line: a line feed is in it.
    """

    text: str
    relevance: float
    tokens: tuple[str, ...]
    space: bool = False
    special: bool = False
    ends_line: bool = False


def pieces(tokens: Sequence[str], relevance: npt.ArrayLike) -> list[Piece]:
    """Turn tokens and their relevance into a text that people can read, piece by piece.

    The tokenizer is recognised from its markers: ``Ġ`` or bytes of letters (byte-level BPE), ``▁`` (SentencePiece),
    ``</w>`` (ends of words), ``##`` (WordPiece). Tokens without any are words; where some begin or end with a space,
    they are the text.

    Args:
        tokens: L of them, as a tokenizer's ``convert_ids_to_tokens`` returns them.
        relevance: of each token, ``(L,)``.

    Returns:
        The pieces in order. Their relevance sums to that of the tokens.

    Raises:
        InputError: no tokens, not one number per token, numbers that are not finite.

    >>> [(piece.text, piece.space) for piece in pieces(["▁un", "happi", "ness", "▁is"], [0.3, 0.2, 0.1, 0.0])]
    [('un', False), ('happi', False), ('ness', False), ('is', True)]
    >>> [(piece.text, piece.relevance) for piece in pieces(["ðŁ", "Ķ¥", "Ġon"], [0.5, 0.25, 0.0])]
    [('🔥', 0.75), ('on', 0.0)]
    """
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise InputError("tokens must be a list of texts, as a tokenizer's convert_ids_to_tokens returns them")
    values = numbers(relevance, "L", "the relevance of tokens").astype(np.float64)
    if len(tokens) != len(values):
        raise InputError(f"{len(tokens)} tokens need as many values of relevance, got {len(values)}")
    found = list[Piece]()
    for text, chosen, special in _merged(tokens, _texts(tokens)):
        found.append(
            Piece(
                text if special else _visible(text.strip(" ") or text[:1]),
                float(values[chosen].sum()),
                tuple(tokens[k] for k in chosen),
                space=bool(found) and (special or found[-1].special or (text != " " and text.startswith(" "))),
                special=special,
                ends_line="\n" in text,
            )
        )
    return found


def _texts(tokens: Sequence[str]) -> list[str | bytes]:
    """Each token as its part of the text, spaces included; bytes where it may hold a part of a letter only."""
    scheme = next((marker for marker in ("Ġ", "Ċ", "▁", "</w>") if any(marker in token for token in tokens)), "")
    if scheme in ("Ġ", "Ċ") or (not scheme and _is_byte_level(tokens)):
        return [_bytes_of(token) or token.replace("Ġ", " ").replace("Ċ", "\n") for token in tokens]
    if scheme == "▁":
        return [
            bytes([int(m[1], 16)]) if (m := _BYTE.fullmatch(token)) else token.replace("▁", " ") for token in tokens
        ]
    if scheme == "</w>":
        words = [token.removesuffix("</w>") for token in tokens]
        spaced = [
            before.endswith("</w>") and _space_between(before.removesuffix("</w>"), word)
            for before, word in zip(("", *tokens[:-1]), words, strict=True)
        ]
        return [_bytes_of("Ġ" * space + word) or " " * space + word for word, space in zip(words, spaced, strict=True)]
    if any(token.strip() and token != token.strip() for token in tokens):
        return list(tokens)
    texts, before = list[str | bytes](), ""
    for token in tokens:
        joined = token.startswith("##") and len(token) > 2
        text = token[2:] if joined else token
        texts.append(text if joined or not _space_between(before, text) else f" {text}")
        before = text or before
    return texts


def _merged(tokens: Sequence[str], texts: Sequence[str | bytes]) -> list[tuple[str, list[int], bool]]:
    """Text, tokens and whether it is special, of every piece: bytes decoded, and special tokens that repeat in one."""
    found = list[tuple[str, list[int], bool]]()
    for special, run in groupby(range(len(tokens)), lambda k: tokens[k] if _is_special(tokens[k]) else None):
        if special is None:
            found += [(text, chosen, False) for text, chosen in _decoded(list(run), tokens, texts)]
        else:
            chosen = list(run)
            found.append(
                (special if len(chosen) == 1 else f"{special} \N{MULTIPLICATION SIGN} {len(chosen)}", chosen, True)
            )
    return found


def _is_special(token: str) -> bool:
    return bool(_SPECIAL.fullmatch(token)) and token != "</w>" and not _BYTE.fullmatch(token)


def _decoded(run: Sequence[int], tokens: Sequence[str], texts: Sequence[str | bytes]) -> list[tuple[str, list[int]]]:
    """Texts of consecutive tokens; tokens that hold one letter's bytes between them become one piece."""
    found, held = list[tuple[str, list[int]]](), list[int]()

    def give_up() -> None:
        """Show tokens as they are: their bytes are no UTF-8, or end inside of a letter."""
        found.extend((tokens[k].replace("Ġ", " "), [k]) for k in held)
        held.clear()

    for k in run:
        text = texts[k]
        if isinstance(text, str):
            give_up()
            found.append((text, [k]))
            continue
        held.append(k)
        try:
            letters = b"".join(part for j in held if isinstance(part := texts[j], bytes)).decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                give_up()
        else:
            found.append((letters, list(held)))
            held.clear()
    give_up()
    return found


def _is_byte_level(tokens: Sequence[str]) -> bool:
    """Whether tokens without a space are byte-level BPE: as bytes they are UTF-8, with letters beyond ASCII."""
    parts = [_bytes_of(token) for token in tokens if not _is_special(token)]
    if None in parts:
        return False
    try:
        # An incremental decoder, as a text may be cut off inside of a letter.
        letters = getincrementaldecoder("utf-8")().decode(b"".join(part for part in parts if part))
    except UnicodeDecodeError:
        return False
    return not letters.isascii()


def _bytes_of(token: str) -> bytes | None:
    """The bytes that byte-level BPE writes as this token; ``None`` where it has other letters."""
    return bytes(_BYTES[letter] for letter in token) if all(letter in _BYTES for letter in token) else None


def _space_between(before: str, after: str) -> bool:
    """Whether people write a space between two words: not around punctuation, and not in Chinese and Japanese."""
    if not before or not after or after[0] in _NO_SPACE_BEFORE or before[-1] in _NO_SPACE_AFTER:
        return False
    return not (_is_wide(before[-1]) and _is_wide(after[0]))


def _is_wide(letter: str) -> bool:
    """Whether a letter is Chinese or Japanese; Korean is written with spaces."""
    return unicodedata.east_asian_width(letter) in "WF" and not "\uac00" <= letter <= "\ud7a3"


def _visible(text: str) -> str:
    """A text on one line, never empty; letters that cannot be printed become ``�``."""
    shown = {" ": "␣", "\n": "⏎", "": "·"}.get(text, text.replace("\n", "⏎").replace("\t", "⇥"))
    return "".join(c if c.isprintable() or c in _JOINERS else "\N{REPLACEMENT CHARACTER}" for c in shown)
