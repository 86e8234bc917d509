from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.pictures import pieces
from headwater.pictures.pieces import _BYTES

LETTER = {byte: letter for letter, byte in _BYTES.items()}


def read(tokens: list[str]) -> str:
    return "".join(" " * piece.space + piece.text for piece in pieces(tokens, np.zeros(len(tokens))))


def byte_level(text: str, at_most: int = 4) -> list[str]:
    """Byte-level tokens that begin at spaces and are cut into a few bytes, also inside of letters."""
    words = [word.encode() for word in re.findall(r" ?[^ ]+", text)]
    return ["".join(LETTER[b] for b in w[k : k + at_most]) for w in words for k in range(0, len(w), at_most)]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("[CLS] it isn ' t bad : über ##aus ( so ) ! [SEP]", "[CLS] it isn't bad: überaus (so)! [SEP]"),
        ("我 喜 欢 。 我 like 그것은 좋은", "我喜欢。我 like 그것은 좋은"),
        ("▁un happi ness ▁is ▁ü ber", "unhappiness is über"),
        ("▁is ▁ <0xF0> <0x9F> <0x8E> <0x89> !", "is␣🎉!"),
        ("Hello Ġworld ! Ċ Ġnew", "Hello world!⏎ new"),
        ("un happy</w> c Ã¶ ln</w> !</w>", "unhappy cöln!"),
        ("hello world !", "hello world!"),
        ("<s> Hello Ġworld </s>", "<s> Hello world </s>"),
        ("## a", "## a"),
    ],
)  # fmt: skip
def test_tokens_are_joined_as_people_read_them(tokens: str, text: str) -> None:
    assert read(tokens.split(" ")) == text


def test_texts_with_their_own_spaces_stay_as_they_are() -> None:
    assert read(["I", " think", ", yes", "."]) == "I think, yes."


@given(st.text(st.sampled_from("aé ß漢字🎉👩‍🔬.!Ж"), min_size=1, max_size=40), st.integers(1, 9))
def test_byte_level_tokens_give_back_the_text(text: str, at_most: int) -> None:
    text = "Straße " + " ".join(text.split())
    found = read(byte_level(text.strip(), at_most))
    assert found.replace("␣", " ") == text.strip()  # a token that is a space alone is shown


@pytest.mark.parametrize("text", ["我喜欢这部电影", "schön", "naïve"])
def test_bytes_are_recognised_without_a_space(text: str) -> None:
    assert read(byte_level(text)) == text


def test_a_text_cut_off_inside_of_a_letter_keeps_the_letters_before_it() -> None:
    tokens = byte_level("schön 🎉", 2)
    assert read(tokens[:-1]).startswith("schön")


def test_words_with_accents_are_no_bytes() -> None:
    assert read(["naïve", "é", "déjà", "Ä"]) == "naïve é déjà Ä"
    assert read(["Ġüber", "Ġdéjà"]) == "über déjà"


@given(st.lists(st.text(max_size=6), min_size=1, max_size=30))
def test_relevance_and_tokens_of_all_pieces_are_those_given(tokens: list[str]) -> None:
    relevance = np.random.default_rng(len(tokens)).integers(-100, 100, len(tokens))
    found = pieces(tokens, relevance)
    assert sum(piece.relevance for piece in found) == relevance.sum()
    assert [token for piece in found for token in piece.tokens] == tokens
    for piece in found:
        assert piece.text
        assert "\n" not in piece.text


def test_a_letter_made_of_several_tokens_is_one_piece_with_their_sum() -> None:
    emoji = byte_level("a 🎉", 2)
    found = pieces(emoji, np.arange(len(emoji)))
    assert [(piece.text, piece.relevance) for piece in found] == [("a", 0), ("🎉", 1 + 2 + 3)]


def test_special_tokens_that_repeat_are_one_piece() -> None:
    found = pieces(["[CLS]", "a", "[PAD]", "[PAD]", "[PAD]"], [1, 2, 3, 4, 5])
    assert [(piece.text, piece.relevance, piece.special) for piece in found] == [
        ("[CLS]", 1, True),
        ("a", 2, False),
        ("[PAD] \N{MULTIPLICATION SIGN} 3", 12, True),
    ]


def test_nothing_that_cannot_be_printed_is_left() -> None:
    text = "".join(piece.text for piece in pieces(["a\x00", "\u202eb", "c\td", "", " "], np.zeros(5)))
    assert text == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}bc⇥d·␣"


@pytest.mark.parametrize(
    ("tokens", "relevance", "told"),
    [
        ([], [], "at least one value"),
        (["a"], [1.0, 2.0], "1 tokens need as many values of relevance, got 2"),
        (["a"], [np.nan], "1 values that are NaN"),
        (["a"], [[1.0]], r"the relevance of tokens must have the shape \(L,\)"),
        ("abc", [1, 2, 3], "tokens must be a list of texts"),
        ([101, 102], [1, 2], "tokens must be a list of texts"),
    ],
)
def test_what_does_not_fit_is_said(tokens, relevance, told) -> None:
    with pytest.raises(InputError, match=told):
        pieces(tokens, relevance)
