"""Axes of a grid of cells, and what their places are called in pictures."""

from dataclasses import dataclass
from typing import Literal

from regap_interp.views.text import runs


@dataclass(frozen=True)
class Axis:
    """One axis of a grid of cells."""

    name: Literal["layer", "position", "head"]
    labels: tuple[str, ...]
    """Of its places, in order."""
    tokens: tuple[str, ...] = ()
    """Of positions, the token that stands there in the patched run of every item; "" where items
    differ, and for spans. Empty where tokens are not known."""

    def names(self) -> list[str]:
        """Of its places, with tokens; a run of equal ones (placeholders) by its token alone. Where
        source and target are named apart, from the one to the other."""
        found = ["\u2192".join(reversed(label.split(" <- "))) for label in self.labels]
        for start, stop in runs(self.tokens):
            token = self.tokens[start]
            for at in range(start, stop):
                if token:
                    found[at] = token if stop - start > 1 else f"{found[at]}:{token}"
        return found
