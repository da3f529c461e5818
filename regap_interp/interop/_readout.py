"""From the last state of the stream to logits, with the final norm folded into the head."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model_adapters.parts import FIRST, logit_factor
from model_adapters.selfcheck import TOLERANCE
from model_adapters.weights import value_of
from regap_interp.interop._norms import Norm, measure
from regap_interp.interop.errors import InteropError

if TYPE_CHECKING:
    from model_adapters import Adapter


class FoldedNorm(nn.Module):
    """The final norm without gain and bias, which are part of `Readout`'s matrix."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.eval()

    def forward(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self.norm.normalised(states)


class Readout:
    """`logits = squash(normalised @ W_U + b_U)`, where `squash` is a soft cap or nothing.

    The norm's gain and bias and a factor on the logits are folded into `W_U` and `b_U`, in float32
    at least: directions on which contributions to logits are read off the bare stream.
    """

    def __init__(self, adapter: "Adapter") -> None:
        """Measure the final norm and compare with the model's own logits.

        Raises:
            InteropError: for a model whose logits are not made in this way.
        """
        if adapter.family.altup:
            raise InteropError(
                f"{adapter.family.name} mixes several streams before its last norm, so no single "
                "state of the stream can be read as logits"
            )
        self.norm = measure(adapter, adapter.layout.norm)
        self.head: Any = adapter.module.get_submodule(adapter.layout.head)
        if not isinstance(self.head, nn.Linear):
            raise InteropError(
                f"the output head is a {type(self.head).__name__}, whose matrix cannot be had; "
                "load the model with a head that is not quantised"
            )
        text = adapter.module.config.get_text_config()
        as_it_comes = adapter._logits.part is FIRST
        cap = getattr(text, "final_logit_softcapping", None)
        self.cap: float | None = None if as_it_comes else cap
        self.factor = 1.0 if as_it_comes or self.cap else logit_factor(text)
        self._compare(adapter)

    def apply_output_logits_transform(
        self, logits: Float[Tensor, "*rows token"]
    ) -> Float[Tensor, "*rows token"]:
        """The soft cap; TransformerLens looks for it under this name."""
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def directions(self, tokens: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d_model"]:
        """Columns of `W_U`, without building the rest of it."""
        weight = value_of(self.head)
        gain = (self.norm.gain * self.factor).to(weight.device)
        found: Tensor = weight[tokens.to(weight.device)].detach().to(gain.dtype) * gain
        return found

    @functools.cached_property
    def w_u(self) -> Float[Tensor, "d_model d_vocab"]:
        """The whole folded matrix; as large as the head in float32, made when first asked for."""
        return self.directions(torch.arange(self.head.out_features)).T

    @functools.cached_property
    def b_u(self) -> Float[Tensor, "d_vocab"]:
        """Folded bias."""
        weight = value_of(self.head).detach()
        bias = self.norm.bias.to(weight.device)
        found = torch.zeros(len(weight), dtype=bias.dtype, device=weight.device)
        if bias.any():
            found = found + (weight.to(bias.dtype) @ bias)
        if self.head.bias is not None:
            found = found + value_of(self.head, "bias").detach().to(bias.dtype)
        return found * self.factor

    def logits(
        self, states: Float[Tensor, "rows d_model"], tokens: Sequence[int]
    ) -> Float[Tensor, "rows token"]:
        """Of some tokens, for states of the stream."""
        chosen = torch.as_tensor(tokens)
        normalised = self.norm.normalised(states).to(self.b_u.device)
        raw = normalised @ self.directions(chosen).T + self.b_u[chosen.to(self.b_u.device)]
        return self.apply_output_logits_transform(raw)

    def _compare(self, adapter: "Adapter") -> None:
        tokens = torch.linspace(0, adapter.d_vocab - 1, 16).long().tolist()
        drawn = torch.randn(2, adapter.d_model, generator=torch.Generator().manual_seed(0))
        # Rounded as the model will round them.
        states = drawn.to(adapter.device, adapter.module.dtype)
        with torch.no_grad():
            own = adapter.unembed(states, tokens)
            folded = self.logits(states.to(self.norm.gain.device), tokens)
        gap = float((own - folded).abs().max() / own.abs().max().clamp(min=1e-30))
        if not gap <= TOLERANCE.get(own.dtype, 5e-2):
            raise InteropError(
                f"final norm and head of {adapter.model_id} do not give the model's logits (off by "
                f"{gap:.1e} of the largest): it does something else there that this does not know"
            )
