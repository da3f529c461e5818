"""A world in which collapse is planted by hand: the mechanism, not evidence for it.

Drift `s` closes the gate between the refusal coordinate `p` and its later reading `downstream`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """`n` items; all tensors are float64 with one entry for each item, except `harmful`."""

    harmful: Bool[Tensor, "item"]
    drift: Float[Tensor, "item"]
    refusal: Float[Tensor, "item"]
    noise: Float[Tensor, "item"]

    def downstream(self, strength: float = 0.0) -> Float[Tensor, "item"]:
        """The later refusal reading after drift is lowered by `strength`, same noise always."""
        gate = torch.sigmoid(2 - 4 * (self.drift - strength))
        return self.refusal * gate + self.noise


def plant(n: int = 6000, seed: int = 1) -> Planted:
    """Draw the planted world."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    harmful = torch.rand(n, generator=generator) < 0.5
    return Planted(
        harmful=harmful,
        drift=1 + 0.5 * normal(),
        refusal=1.5 * harmful + 0.6 * normal(),
        noise=0.4 * normal(),
    )
