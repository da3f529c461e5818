"""What running a graph returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from regap_interp.graph.edits import Edit


@dataclass(frozen=True, eq=False)
class Run:
    """What a graph read and did in one prefill (and in the decoding after it)."""

    values: Mapping[str, Tensor]
    """The graph's outputs: `[batch, ...]`. Several positions are `[batch, position, ...]`, NaN
    where none was read; values of decoding are `[batch, step, ...]`."""
    strengths: Mapping[Edit, Float[Tensor, "batch"]]
    """How strong each edit of the prefill was in each row, float64."""
    recomputed: Int[Tensor, "batch"]
    """Decoder layers run for a row beside those of its own prefill: for probes and corrections."""
    n_layers: int
    """Layers of the model, which a prefill runs once."""
    modalities: tuple[str, ...]
    """Of each row."""
    logits: Float[Tensor, "batch d_vocab"] | None = None
    """At the last prompt token, where they were asked for."""

    def __getitem__(self, name: str) -> Tensor:
        """An output by its name.

        Raises:
            KeyError: naming the outputs there are.
        """
        if name not in self.values:
            there = ", ".join(self.values) or "none: give the graph outputs={name: value}"
            raise KeyError(f"no output {name!r}; there are {there}")
        return self.values[name]

    def __len__(self) -> int:
        """Rows."""
        return len(self.recomputed)

    @property
    def extra_prefill(self) -> Float[Tensor, "batch"]:
        """`recomputed` as a share of a prefill's layers."""
        return self.recomputed.double() / self.n_layers
