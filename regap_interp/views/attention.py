"""Attention patterns of several heads, as small maps on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.views.coloured import Coloured
from regap_interp.views.drawing import draw_cells, ticks
from regap_interp.views.numbers import extent
from regap_interp.views.text import brief, thinned

if TYPE_CHECKING:
    from regap_interp.views.interactive import Interactive

_HEADS = 32
"""Maps that are drawn."""
_ROOM = 160
"""Queries and keys that a map can show."""
_NAMED = 24
"""Up to this many tokens, axes say them."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionHeads(Coloured):
    """Where each head looks: queries from top to bottom, keys from left to right."""

    patterns: Float[Tensor, "head query key"]
    """Attention, or its change; NaN where it could not be measured."""
    tokens: Sequence[str]
    """One text for each key; the queries are the last of them."""
    heads: Sequence[str]
    """A name for each head, such as "L12H3"."""

    def __post_init__(self) -> None:
        """Refuse names that do not belong to the patterns."""
        super().__post_init__()
        heads, queries, keys = self.patterns.shape
        if (heads, keys) != (len(self.heads), len(self.tokens)) or queries > keys or not heads:
            raise ValueError(
                f"patterns have shape {tuple(self.patterns.shape)} (head, query, key), with "
                f"{len(self.heads)} names of heads and {len(self.tokens)} tokens; give a name for "
                "each head, a token for each key, and no more queries than keys"
            )

    def interactive(self) -> "Interactive":
        """The same with scripts, through circuitsvis: see `Interactive`."""
        from regap_interp.views.interactive import attention_heads

        return attention_heads(self.patterns, self.tokens, self.heads)

    def _numbers(self) -> Tensor:
        return self.patterns

    def _summary(self) -> str:
        heads, queries, keys = self.patterns.shape
        return (
            f"attention of {heads} heads, {queries} queries x {keys} keys, "
            f"{self.quantity}{extent(self.patterns)}"
        )

    def _notes(self) -> str:
        left = len(self.heads) - len(self._shown())
        hidden = f"{left} of {len(self.heads)} heads not drawn" if left else ""
        size = -(-self.patterns.shape[1] // _ROOM), -(-len(self.tokens) // _ROOM)
        shared = f"strongest of {size[0]} x {size[1]} drawn" if size != (1, 1) else ""
        return " \u00b7 ".join(part for part in (super()._notes(), hidden, shared) if part)

    def _columns(self) -> dict[str, Sequence[Any]]:
        _, queries, keys = self.patterns.shape
        head, query, key = torch.ones_like(self.patterns).nonzero().T
        return {
            "head": [self.heads[index] for index in head.tolist()],
            "query": (query + keys - queries).tolist(),
            "key": key.tolist(),
            "value": self.patterns.flatten().tolist(),
        }

    def _shown(self) -> list[int]:
        return thinned(len(self.heads), _HEADS)

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        count = len(self._shown())
        columns = min(count, 4 if count <= 16 else 8)
        side = 2.1 if columns <= 4 else 1.3
        return -(-count // columns), columns, (side + 0.2, side + 0.2)

    def _draw(self, axes: list[list[Any]]) -> None:
        flat = [ax for row in axes for ax in row]
        shown = self._shown()
        keys, queries = self.tokens, self.tokens[-self.patterns.shape[1] :]
        named = len(keys) <= _NAMED and len(axes[0]) <= 4
        for place, (ax, index) in enumerate(zip(flat, shown, strict=False)):
            draw_cells(ax, self.patterns[index], self.colours, (_ROOM, _ROOM))
            ax.set_title(brief(self.heads[index], 24), fontsize=8)
            lowest = named and place + len(axes[0]) >= len(shown)
            first = named and place % len(axes[0]) == 0
            ax.set_xticks(*(ticks(keys) if lowest else ([], [])), rotation=90)
            ax.set_yticks(*(ticks(queries) if first else ([], [])))
            ax.tick_params(labelsize=6, length=2)
        for ax in flat[len(shown) :]:
            ax.axis("off")
        self._bar(flat)
