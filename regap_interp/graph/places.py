"""The order in which a pass reaches sites, and which positions a rule names in it."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.batch import Positions
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import LAYER_SITES, MODEL_SITES, At, Steps

Place = tuple[int, int]
"""Sorts sites in the order of a pass: (layer, number within the layer)."""


def place(site: str, layer: int | None, n_layers: int) -> Place:
    """Where in a pass a site is reached."""
    if site == "embed":
        return (-1, 0)
    if site in ("final_norm", "logits"):
        return (n_layers, int(site == "logits"))
    assert layer is not None
    return (layer, LAYER_SITES.index(site))


def site_at(where: Place, n_layers: int) -> tuple[str, int | None]:
    """Site and layer of a place: the inverse of `place`."""
    layer, number = where
    if layer < 0:
        return MODEL_SITES[0], None
    return (MODEL_SITES[1 + number], None) if layer == n_layers else (LAYER_SITES[number], layer)


def label(site: str, layer: int | None) -> str:
    """A site as users write it, such as `resid_post[7]`."""
    return site if layer is None else f"{site}[{layer}]"


def span_mask(at: At, prompt: Positions) -> Bool[Tensor, "batch position"]:
    """True at the positions that a rule names in a prefill.

    Raises:
        GraphError: for an index that a row does not have.
    """
    if isinstance(at, tuple):
        mask = torch.zeros_like(prompt.prompt_mask)
        return mask.scatter(1, indices(at, prompt), True)
    assert not isinstance(at, Steps)
    if at == "last":
        return torch.zeros_like(prompt.prompt_mask).scatter(1, prompt.last[:, None], True)
    if at == "prompt":
        return prompt.prompt_mask
    return prompt.mask(at)


def indices(at: tuple[int, ...], prompt: Positions) -> Int[Tensor, "batch chosen"]:
    """Positions in the batch of indices counted within each row's prompt.

    Raises:
        GraphError: for an index that a row does not have.
    """
    mask = prompt.prompt_mask
    lengths = mask.sum(dim=1)
    wanted = torch.tensor(at, device=mask.device).expand(len(mask), -1)
    counted = torch.where(wanted < 0, wanted + lengths[:, None], wanted)
    wrong = (counted < 0) | (counted >= lengths[:, None])
    if wrong.any():
        row = int(wrong.any(dim=1).nonzero()[0])
        raise GraphError(
            f"positions {at}: row {row} has {int(lengths[row])} prompt positions, "
            f"0 to {int(lengths[row]) - 1} (or -{int(lengths[row])} to -1)"
        )
    first = mask.int().argmax(dim=1)
    return first[:, None] + counted
