"""What a normalisation layer does to a vector, measured on the layer itself.

Families write the same norm in different ways: RMS norms whose weight counts from one or from
zero, layer norms with and without a bias. Two probes of the layer tell gain and bias whatever the
convention, and a third one whether that is all the layer does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters.weights import device_of, kept_values
from regap_interp.interop.errors import InteropError

if TYPE_CHECKING:
    from model_adapters import Adapter

_EPS = ("variance_epsilon", "eps", "epsilon", "norm_eps")


@dataclass(frozen=True)
class Norm:
    """`gain * (x - mean) / scale(x) + bias`; without the mean where it is an RMS norm."""

    centred: bool
    eps: float
    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"]

    def centre(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The states as they are divided by the scale."""
        return states - states.mean(dim=-1, keepdim=True) if self.centred else states

    def scale(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """What the states are divided by, in float32 at least."""
        wide = self.centre(states.to(self.gain.dtype))
        return (wide.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def normalised(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The states before gain and bias, in float32 at least."""
        return self.centre(states.to(self.gain.dtype)) / self.scale(states)


def measure(adapter: "Adapter", path: str) -> Norm:
    """The norm at a path of the model.

    Raises:
        InteropError: for a layer that is neither an RMS norm nor a layer norm.
    """
    module: Any = adapter.module.get_submodule(path)
    eps = next((getattr(module, name) for name in _EPS if hasattr(module, name)), None)
    unlike = InteropError(
        f"{path} ({type(module).__name__}) is neither an RMS norm nor a layer norm, which are "
        "all that TransformerLens knows"
    )
    if not isinstance(eps, float) or list(module.children()):
        raise unlike
    values = dict(kept_values(module))
    width = next((len(value) for value in values.values()), adapter.d_model)
    probe = _probe(width)
    drawn = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).double() + 0.5
    # Small states too: there a wrong epsilon shows.
    given = torch.stack([probe, -probe, drawn[0], drawn[1] * eps**0.5])
    out = _call(module, values, given)
    double = any(value.dtype == torch.float64 for value in values.values())
    exact = torch.float64 if double else torch.float32
    for centred in (False, True):
        raw = Norm(centred, eps, torch.ones(width).double(), torch.zeros(width).double())
        gain = (out[0] - out[1]) / 2 / raw.normalised(probe)
        bias = (out[0] + out[1]) / 2
        if torch.allclose(out[2:], raw.normalised(given[2:]) * gain + bias, rtol=1e-5, atol=1e-5):
            device = device_of(module) if values else adapter.device
            return Norm(centred, eps, gain.to(device, exact), bias.to(device, exact))
    raise unlike


def _probe(width: int) -> Tensor:
    """No entry zero, their mean zero."""
    signs = torch.ones(width).double()
    signs[1::2] = -1
    if width % 2:
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return signs


def _call(module: Any, values: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """The layer's output in double precision.

    A twin of the layer computes it, with the layer's own forward: no hook, trace or offloading of
    the layer takes part.
    """
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    twin._parameters = {name: value.detach().cpu().double() for name, value in values.items()}
    with torch.no_grad():
        found: Tensor = type(module).forward(twin, states)
    return found.double()
