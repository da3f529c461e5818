"""Axes of a grid of cells, and what their places are called in pictures."""

import re
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
        """Of its places, with tokens; neighbours of an equal one (placeholders) by it alone. Where
        source and target are named apart, from the one to the other."""
        found = ["\u2192".join(reversed(label.split(" <- "))) for label in self.labels]
        for start, stop in runs(self.tokens):
            token, long = self.tokens[start], stop - start > 1
            together = long and self._neighbours(start, stop)
            for at in range(start, stop):
                if token:
                    found[at] = token if together else f"{found[at]}:{token}"
        return found

    def _neighbours(self, start: int, stop: int) -> bool:
        """Whether places are positions one behind the other."""
        labels = self.labels[start:stop]
        if not all(re.fullmatch(r"-?\d+", one) for one in labels):
            return False
        return [int(one) - int(labels[0]) for one in labels] == list(range(stop - start))
