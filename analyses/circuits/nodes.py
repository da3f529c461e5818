"""Parts of a model that write into its residual stream, and the edges between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["embed", "attn", "head", "mlp", "added", "readout"]
SPANS = ("text", "special", "image", "audio", "video")


@dataclass(frozen=True, order=True)
class Node:
    """A part of the model. Its name is its text, such as `head 3.1`."""

    layer: int
    """Decoder layer; -1 of embeddings, the number of layers of the readout."""
    kind: Kind
    """`head`, or `attn` where what heads write cannot be told apart (a norm or a multiplier stands
    behind them); `added` is what the model adds to the stream behind a layer (DeepStack)."""
    part: int | str = 0
    """Number of the head; of embeddings the kind of positions: "image"."""

    def __post_init__(self) -> None:
        """Refuse kinds that do not exist."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"no node is a {self.kind!r}; they are {', '.join(get_args(Kind))}")
        if self.kind == "embed" and self.part not in SPANS:
            raise ValueError(f"no embeddings are {self.part!r}; they are {', '.join(SPANS)}")

    def __str__(self) -> str:
        """Its name."""
        match self.kind:
            case "embed":
                return str(self.part)
            case "readout":
                return "readout"
            case "head":
                return f"head {self.layer}.{self.part}"
        return f"{self.kind} {self.layer}"

    def reaches(self, other: "Node", parallel: Sequence[int] = ()) -> bool:
        """Whether what it writes is there when the other one reads.

        Args:
            other: A later part, or not.
            parallel: Layers whose MLP reads what attention reads.
        """
        if other.kind in ("embed", "added"):
            return False
        if self.layer != other.layer:
            return self.layer < other.layer
        before = self.kind in ("head", "attn") and other.kind == "mlp"
        return before and self.layer not in parallel


def named(name: str, n_layers: int) -> Node:
    """The node of a name.

    Raises:
        ValueError: no node is called so.
    """
    kind, _, rest = name.partition(" ")
    if name in SPANS:
        return Node(-1, "embed", name)
    if name == "readout":
        return Node(n_layers, "readout")
    layer, _, part = rest.partition(".")
    if kind == "head" and layer.isdigit() and part.isdigit():
        return Node(int(layer), "head", int(part))
    for known in ("attn", "mlp", "added"):
        if kind == known and rest.isdigit():
            return Node(int(rest), known)
    raise ValueError(f'no node is called {name!r}; names are "image", "head 3.1", "mlp 3", ...')


def edges(
    nodes: Sequence[Node], readout: Node, parallel: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Senders and receivers, as places in `nodes` with the readout behind them."""
    for to, receiver in enumerate((*nodes, readout)):
        for sender, node in enumerate(nodes):
            if node.reaches(receiver, parallel):
                yield sender, to
