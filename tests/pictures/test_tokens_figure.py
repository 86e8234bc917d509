from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.pictures import pieces, tokens_figure, tokens_html
from headwater.pictures.layout import is_dark
from headwater.pictures.wrapping import wrapped
from headwater.report import Style


class Read(HTMLParser):
    """Text, tooltips, colours and names of elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tooltips, self.styles, self.elements = "", [], [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        assert {name for name, _ in attrs} <= {"style", "title", "dir"}
        if (title := dict(attrs).get("title")) is not None:
            self.tooltips.append(title)
            self.styles.append(dict(attrs)["style"])

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.lists(st.text(st.sampled_from("<>&\"'aä/!-=`\x00\u202e"), max_size=8), min_size=1, max_size=10))
def test_nothing_in_a_token_is_markup(tokens: list[str]) -> None:
    page = Read(tokens_html(tokens, np.ones(len(tokens)), title="<i>&\"'", note="<script>x</script>"))
    assert page.elements <= {"div", "span", "br"}
    assert page.text.startswith("<i>&\"'")
    assert page.text.endswith("<script>x</script>")
    for piece in pieces(tokens, np.ones(len(tokens))):
        assert piece.text in page.text
    assert len(page.tooltips) == len(pieces(tokens, np.ones(len(tokens))))


def test_tooltips_hold_tokens_relevance_and_share() -> None:
    page = Read(tokens_html(["über", "##aus", "gut"], [0.5, -0.25, 0.75], title="", note="sum {sum}"))
    assert page.tooltips == [
        "über: 0.5 (50.0 % of the sum)",
        "##aus: -0.25 (-25.0 % of the sum)",
        "gut: 0.75 (75.0 % of the sum)",
    ]
    assert "sum 1" in page.text
    assert "überaus gut" in page.text
    assert Read(tokens_html(["a", "b"], [1, -1], title="")).tooltips == ["a: 1", "b: -1"]


def test_red_is_for_and_blue_against_the_class_and_stronger_is_more_opaque() -> None:
    page = tokens_html(["a", "b", "c", "d"], [1.0, -0.5, 0.0, 0.25], title="")
    found = [style.split(";")[0] for style in Read(page).styles]
    assert found == [
        "background: rgba(214, 58, 51, 0.800)",
        "background: rgba(45, 115, 200, 0.400)",
        "background: rgba(45, 115, 200, 0.000)",
        "background: rgba(214, 58, 51, 0.200)",
    ]
    assert "against -1" in page
    assert "1 for" in page


@pytest.mark.parametrize(("page", "ink"), [((255, 255, 255), (33, 33, 33)), ((17, 17, 17), (224, 224, 224))])
def test_text_has_a_contrast_of_four_and_a_half_on_light_and_dark_pages(page, ink) -> None:
    def luminance(colour: np.ndarray) -> float:
        part = np.asarray(colour) / 255
        return float(
            np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    html = tokens_html(["a", "b"], [1.0, -1.0], title="")
    for red, green, blue, alpha in re.findall(r"background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\); border", html):
        opacity = float(alpha)
        behind = opacity * np.array([int(red), int(green), int(blue)]) + (1 - opacity) * np.array(page)
        low, high = sorted([luminance(behind), luminance(np.array(ink))])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_special_tokens_do_not_set_the_range_of_the_colours() -> None:
    styles = Read(tokens_html(["[CLS]", "good", "film"], [100.0, 1.0, 0.5], title="")).styles
    assert ["0.800" in styles[0], "0.800" in styles[1], "0.400" in styles[2]] == [True, True, True]


@given(st.lists(st.sampled_from(["a", "##b", "longer", "漢", ".", "[SEP]", "x" * 90, "\n"]), min_size=1, max_size=80))
def test_lines_are_no_longer_than_their_room_and_hold_all_pieces(tokens: list[str]) -> None:
    parts = pieces(tokens, np.zeros(len(tokens)))
    places = wrapped(parts, 3.0)
    assert len(places) == len(parts)
    for before, after in pairwise(places):
        assert after.line in (before.line, before.line + 1)
        assert after.line > before.line or after.left >= before.left + before.width - 1e-9
    assert all(place.left + place.width <= 3.0 for place in places)


def test_words_are_not_broken_where_they_fit_on_a_line() -> None:
    parts = pieces(["un", "##break", "##able"] * 40, np.zeros(120))
    places = wrapped(parts, 3.0)
    assert all(len({place.line for place in places[k : k + 3]}) == 1 for k in range(0, 120, 3))


def test_a_piece_stands_on_the_colour_of_its_relevance(decoded) -> None:
    picture = decoded(tokens_figure(["wwwww", "iiiii"], [1.0, -1.0], title="", style=Style(colormap="bwr")))
    panel = picture[:, :1340].reshape(-1, 3).tolist()
    assert panel.count([255, 0, 0]) > 500
    assert panel.count([0, 0, 255]) > 200


def test_ink_is_readable_on_every_colour() -> None:
    assert is_dark((0, 0, 0))
    assert is_dark((0.4, 0, 0.1, 1.0))
    assert not is_dark((1, 1, 1))
    assert not is_dark((0.99, 1.0, 0.64))


def test_short_texts_have_room_for_the_colour_bar_and_longer_ones_are_higher(decoded) -> None:
    short = decoded(tokens_figure(["a"], [1.0], title="", note="x"))
    long = decoded(tokens_figure(["words"] * 400, np.ones(400), title="", note="x"))
    assert short.shape[:2] == (pytest.approx(150 * (0.3 + 0.9 + 0.27), abs=1.5), 1500)
    assert long.shape[0] > 2 * short.shape[0]


def test_umlauts_emoji_and_chinese_are_drawn_with_or_without_a_font(decoded, recwarn) -> None:
    text = ["schön", "🎉", "漢字", "$x^2$", "שלום", "ไทย"]
    assert decoded(tokens_figure(text, np.arange(len(text)), title="", note="x")).shape[1] == 1500
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_of_a_very_long_text_the_first_lines_are_drawn(decoded) -> None:
    count = 250
    picture = decoded(tokens_figure(["a", "\n"] * count, np.ones(2 * count), title=""))
    assert picture.shape[0] == pytest.approx(150 * (0.3 + 200 * 0.25 + 0.2 + 0.27), abs=1.5)


@pytest.mark.parametrize("draw", [tokens_html, tokens_figure])
def test_what_does_not_fit_is_said(draw) -> None:
    with pytest.raises(InputError, match="1 tokens need as many values of relevance, got 2"):
        draw(["a"], [1.0, 2.0], title="")
