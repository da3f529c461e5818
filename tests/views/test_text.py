"""Tokens as visible text."""

import unicodedata

import pytest

from regap_interp.views.text import brief, number, runs, thinned, visible
from tests.views.samples import EVIL

INF = float("inf")
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "\u2423the"),
        ("a\n", "a\u21b5"),
        ("\t", "\u21e5"),
        ("a\x00b", "a\u27e8U+0000\u27e9b"),
        ("\u202ea", "\u27e8U+202E\u27e9a"),
        ("\ud800", "\u27e8U+D800\u27e9"),
        ("\u00a0", "\u27e8U+00A0\u27e9"),
        ("\u3164", "\u27e8U+3164\u27e9"),
        ("a\ufe0f", "a\u27e8U+FE0F\u27e9"),
        ("\u0301", "\u25cc\u0301"),
        ("", "\u27e8empty\u27e9"),
        ("<s>", "<s>"),
        ("驅動", "驅動"),
        ("ab" * 30, "ababababababababa\u2026babababababababab (60 characters)"),
    ],
)
def test_every_character_can_be_seen(token: str, shown: str) -> None:
    assert visible(token, 36) == shown


@pytest.mark.parametrize("token", [*EVIL, "\x00" * 500, "a" * 50 + "\u202e"])
def test_it_is_short_and_hides_nothing(token: str) -> None:
    for shown in (visible(token, 20), brief(token, 20)):
        assert len(shown) < 45
        assert not {unicodedata.category(c) for c in shown} & HIDDEN


def test_different_lengths_are_told_apart() -> None:
    assert visible("x" * 10_000) != visible("x" * 10_001)


@pytest.mark.parametrize("name", ["a" * 14, "a" * 15, "\x00" * 9, " "])
def test_names_of_axes_are_brief(name: str) -> None:
    assert len(brief(name, 14)) <= 14


def test_numbers_have_signs_and_words() -> None:
    assert [number(x) for x in (0.5, -0.0123456, float("nan"), INF, -INF)] == [
        "+0.5",
        "\u22120.0123",
        "not measured",
        "+\u221e",
        "\u2212\u221e",
    ]


def test_long_runs_are_one_and_short_ones_apart() -> None:
    assert runs("abbccccd") == [(0, 1), (1, 2), (2, 3), (3, 7), (7, 8)]
    assert runs("") == []


@pytest.mark.parametrize("count", [1, 2, 7, 48, 49, 81, 1000])
def test_thinned_keeps_the_ends(count: int) -> None:
    kept = thinned(count, 8)

    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert len(kept) == min(count, 8)
    assert kept == sorted(set(kept))
