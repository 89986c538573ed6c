"""Untrusted text in a page: nothing acts, nothing hides, and what is too long is cut."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vila_data.explore.preview.text import NOTE_BYTES, one_line, safe_link, safe_text

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
"""Lone surrogates among it."""
_JOINERS = "\u200c\u200d"


def body(markup: str) -> str:
    """The markup without the note of a cut."""
    return re.sub(r'<span class="cut">[^<]*</span>$', "", markup)


def assert_nothing_hides(text: str) -> None:
    text.encode()  # a lone surrogate cannot be written
    for char in text:
        category = unicodedata.category(char)
        assert category not in ("Cs", "Co", "Zl", "Zp"), f"U+{ord(char):04X}"
        assert category != "Cc" or char in "\n\t\r", f"U+{ord(char):04X}"
        assert category != "Cf" or char in _JOINERS, f"U+{ord(char):04X}"


@given(ANY_TEXT, st.integers(0, 500))
@example("\ud800\u202e\x00", 500)
@example("<" * 200, 7)
@example('<b onclick="x">&amp;</b> \'', 500)
def test_any_text_is_made_harmless_and_fits(text: str, room: int) -> None:
    found = safe_text(text, room)
    markup = str(found.markup)
    assert_nothing_hides(markup)
    assert len(body(markup).encode()) <= room
    assert len(markup.encode()) <= room + NOTE_BYTES
    assert not re.sub(r'<span class="(odd|cut)">[^<>&]*</span>', "", markup).count("<")
    assert 0 <= found.cut <= len(text)
    assert (found.cut > 0) == ('<span class="cut">' in markup)


@given(ANY_TEXT)
def test_all_of_a_text_is_shown_where_there_is_room(text: str) -> None:
    found = safe_text(text, 1_000_000)
    assert found.cut == 0
    left = re.sub(r'<span class="odd">[^<]*</span>', "", str(found.markup))
    visible = iter(text)
    assert all(char in visible for char in html.unescape(left))  # in order, nothing added


@given(st.text(st.characters(categories=("L", "N", "P", "Sm", "Sc")), max_size=200))
def test_what_can_be_seen_is_shown_as_it_is(text: str) -> None:
    text = re.sub("[\u115f\u1160\u3164\uffa0]", "", text)
    assert html.unescape(str(safe_text(text, 100_000).markup)) == text


@given(ANY_TEXT, st.integers(1, 80))
def test_attributes_are_one_short_line(text: str, room: int) -> None:
    found = one_line(text, room)
    assert_nothing_hides(found)
    assert not set("\n\r\t") & set(found)
    assert len(found) <= room + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u202eb", "a[U+202E]b"),
        ("\u200b\u200b\u200b", "[U+200B x3]"),
        ("x\ud800y", "x[U+D800]y"),
        ("\x00", "[U+0000]"),
        ("🏔️ 👩\u200d👧 \u0645\u06cc\u200c\u062e", "🏔️ 👩\u200d👧 \u0645\u06cc\u200c\u062e"),
        ("a\u200db", "a[U+200D]b"),
        ("e" + "\u0301" * 3, "e" + "\u0301" * 3),
        ("e" + "\u0301" * 300, "e[300 combining marks]"),
        ("a\nb\tc\r\nd", "a b c  d"),
        ("\u2028", "[U+2028]"),
        ("\ufeff", "[U+FEFF]"),
        ("a\u00adb", "a[U+00AD]b"),
        ("\U000e0041", "[U+E0041]"),
        ("a\n\n\n\n\n\n\n\n\n\nb", "a [line break x9]b"),
    ],
)
def test_labels(text: str, expected: str) -> None:
    assert one_line(text, 200) == expected


def test_a_megabyte_is_cut_and_says_so() -> None:
    found = safe_text("word " * 200_000, 4_000)
    assert found.cut == 996_000
    assert "996,000 of 1,000,000 characters not shown" in found.markup
    assert safe_text("x" * 10, 5).cut == 5


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " https://a.test/",
        "java\nscript:alert(1)",
        "https://a.test/\n",
        "ht\ttps://a.test/",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:https://a.test/1",
        "//a.test/",
        "/local",
        "https://",
        "https://a.test/\u202e",
        "https://xn--\u0430.test/",
        "http://[bad",
        "https://a.test:99999/",
        "https://bank.test@far.test/",
        "https://a.test/" + "x" * 3_000,
    ],
)
def test_what_is_no_plain_web_address_is_not_linked(url: str | None) -> None:
    assert safe_link(url) is None


def test_a_web_address_is_linked() -> None:
    assert safe_link("https://a.test/b?c=1&d='\"<>#e") == "https://a.test/b?c=1&d='\"<>#e"
    assert safe_link("http://127.0.0.1:8765/x.jpg") == "http://127.0.0.1:8765/x.jpg"


@given(ANY_TEXT)
def test_links_have_a_harmless_scheme(url: str) -> None:
    found = safe_link("https:" + url) or safe_link(url)
    assert found is None or found.startswith(("http://", "https://"))
