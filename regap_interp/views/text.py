"""Tokens as text that can be seen: nothing hidden, nothing that turns the line around."""

import math
import unicodedata
from collections.abc import Hashable, Sequence

_LONGEST = 40
_NAMED = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}
# Drawn as nothing, though Unicode counts them among the letters, marks and symbols.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Cn", "Co", "Zs", "Zl", "Zp"))
_FEWEST = 4
"""Shorter runs of equal tokens are shown one by one."""


def visible(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line with a visible sign for every character that shows none.

    Spaces, line breaks, control and format characters (such as right-to-left marks), lone
    surrogates and blank letters become signs or their number, as in `⟨U+202E⟩`. What is longer
    than `longest` characters loses its middle and says how long it was.
    """
    if not text:
        return "\u27e8empty\u27e9"
    whole = _taken(text[: longest + 1], longest)
    if whole == len(text):
        return _signs(text)
    room = max((longest - 1) // 2, 1)
    first = text[: _taken(text[:room], room)]
    last = text[len(text) - _taken(text[: -room - 1 : -1], room) :]
    count = f"{len(text):,}".replace(",", "\u202f")
    return f"{_signs(first)}\u2026{_signs(last)} ({count} characters)"


def brief(name: str | int, longest: int) -> str:
    """A name along an axis: a number as it is, a text visible and cut at its end."""
    if isinstance(name, int):
        return str(name)
    if _taken(name[: longest + 1], longest) == len(name):
        return visible(name, longest)
    return f"{_signs(name[: _taken(name[:longest], longest - 1)])}\u2026"


def number(value: float) -> str:
    """A value with its sign and three figures; "not measured" for NaN, ∞ for infinities."""
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "+\u221e" if value > 0 else "\u2212\u221e"
    return f"{value:+.3g}".replace("-", "\u2212")


def runs(labels: Sequence[Hashable], fewest: int = _FEWEST) -> list[tuple[int, int]]:
    """First and one-past-last index of every run of `fewest` and more equal labels, and of every
    other label alone, in order."""
    found: list[tuple[int, int]] = []
    start = 0
    for stop in range(1, len(labels) + 1):
        if stop < len(labels) and labels[stop] == labels[start]:
            continue
        long = stop - start >= fewest
        found += [(start, stop)] if long else [(i, i + 1) for i in range(start, stop)]
        start = stop
    return found


def thinned(count: int, most: int) -> list[int]:
    """At most `most` (2 and more) of the indices below `count`, evenly, with the first and last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _taken(text: str, room: int) -> int:
    """How many characters from the start have room when they are visible; at least one."""
    wide = 0
    for count, character in enumerate(text):
        wide += len(_sign(character))
        if count and wide > room:
            return count
    return len(text)


def _signs(text: str) -> str:
    shown = "".join(map(_sign, text))
    # A mark at the start would sit on what stands before it.
    return f"\u25cc{shown}" if unicodedata.combining(shown[0]) else shown


def _sign(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    if selector or character in _BLANK or unicodedata.category(character) in _HIDDEN:
        return f"\u27e8U+{code:04X}\u27e9"
    return character
