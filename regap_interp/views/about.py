"""Captions: where numbers come from."""

import textwrap
from dataclasses import dataclass

from regap_interp.views.text import brief, visible


@dataclass(frozen=True)
class About:
    """Where numbers come from, for the caption."""

    model: str | None = None
    """The model's name."""
    n: int | None = None
    """Items that the numbers were made from."""
    seed: int | None = None
    """Of whatever was random."""
    note: str = ""
    """Anything else, such as "means over pairs, 95 % bootstrap intervals"."""

    def __str__(self) -> str:
        """The caption, on one line."""
        parts = [
            f"model {words(self.model)}" if self.model is not None else "",
            f"n = {self.n}" if self.n is not None else "",
            f"seed {self.seed}" if self.seed is not None else "",
            words(self.note, 1000),
        ]
        return " \u00b7 ".join(part for part in parts if part)


def words(text: str, longest: int = 120) -> str:
    """Text of a user on one line, spaces as spaces, other invisible characters as signs."""
    line = " ".join(text.split())
    return visible(line, longest).replace("\u2423", " ") if line else ""


def label(text: str, longest: int = 24, *, line: int = 0) -> str:
    """A name in a figure, cut at its end, in lines of `line` characters if that is given."""
    one = brief(" ".join(text.split()), longest).replace("\u2423", " ")
    return textwrap.fill(one, line) if line else one
