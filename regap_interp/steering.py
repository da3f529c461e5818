"""Fixed-strength steering of the prompt, and random directions to compare it with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model_adapters import Adapter, Batch, Generation
from regap_interp._linear import orthonormal_basis


@dataclass(frozen=True, eq=False)
class Steer:
    """Subtract `strength * vector` after one layer, at every prompt position, in the prefill.

    Padding is left alone, and so are the steps of decoding: they see the correction only
    through the prompt's keys and values. With `strength` 0 nothing is edited at all, so the
    output is bit for bit the bare model's.
    """

    layer: int
    """Decoder layer whose output (`resid_post`) is edited, from 0."""
    vector: Float[Tensor, "d_model"]
    """What to subtract at strength 1; a drift direction's raw `vector`, say."""
    strength: float = 1.0
    """Multiple of `vector`; negative adds it."""

    def check(self, adapter: Adapter) -> None:
        """Refuse a steering that was made for another model.

        Raises:
            ValueError: The layer or the width is not the adapter's, or a number is not finite.
        """
        if not 0 <= self.layer < adapter.n_layers:
            raise ValueError(
                f"layer is {self.layer}; {adapter.model_id} has layers 0 to {adapter.n_layers - 1}"
            )
        if self.vector.shape != (adapter.d_model,):
            raise ValueError(
                f"vector has shape {tuple(self.vector.shape)}; {adapter.model_id} has residual "
                f"states of width {adapter.d_model}: take a direction made on this model"
            )
        if not (self.strength * self.vector).isfinite().all():
            raise ValueError("strength * vector is not finite; check where the direction is from")

    def edit(
        self,
        states: Float[Tensor, "batch position d_model"],
        prompt: Bool[Tensor, "batch position"],
    ) -> Float[Tensor, "batch position d_model"]:
        """`states` steered where `prompt` is True, in their own dtype and on their own device."""
        shift = (self.strength * self.vector.to(torch.float64)).to(states)
        return torch.where(prompt.to(states.device).unsqueeze(-1), states - shift, states)

    def apply(self, adapter: Adapter, batch: Batch) -> None:
        """Edit the running prefill of `batch`; call it inside a trace, before later layers."""
        if self.strength == 0:
            return
        states = adapter.resid_post[self.layer]
        adapter.resid_post[self.layer] = self.edit(states, batch.prompt_mask)

    def generate(self, adapter: Adapter, batch: Batch, **options: Any) -> Generation:
        """`adapter.generate(batch, **options)` under this steering.

        Raises:
            ValueError: As `check` does, or for a `prefill` of your own: that place is taken.
        """
        self.check(adapter)
        if "prefill" in options:
            raise ValueError(
                "Steer.generate edits the prefill itself; to do more there, call "
                "adapter.generate with a prefill that calls steer.apply(adapter, batch) too"
            )
        if self.strength == 0:
            return adapter.generate(batch, **options)
        return adapter.generate(
            batch, prefill=lambda running: self.apply(running, batch), **options
        )


def random_orthogonal(
    n: int,
    *,
    like: Float[Tensor, "d_model"],
    against: Iterable[Float[Tensor, "d_model"]],
    seed: int = 0,
) -> Float[Tensor, "n d_model"]:
    """Control directions: isotropic, orthogonal to every vector of `against`, as long as `like`.

    Args:
        n: Directions to draw; they are independent of each other.
        like: The vector whose length they take; they need not be orthogonal to it.
        against: Vectors that steering along the result must not move, such as refusal.
        seed: The same seed gives the same directions.

    Raises:
        ValueError: Widths differ, or `against` spans the whole space.
    """
    exact = like.detach().to("cpu", torch.float64)
    basis = orthonormal_basis(list(against), like=exact)
    if len(basis) >= len(exact):
        raise ValueError(f"against spans all {len(exact)} dimensions; nothing is orthogonal to it")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, len(exact), generator=generator, dtype=torch.float64)
    for _ in range(2):  # the second pass removes what rounding left of the first
        drawn = drawn - (drawn @ basis.T) @ basis
    return drawn * (exact.norm() / drawn.norm(dim=1, keepdim=True))
