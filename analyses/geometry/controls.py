"""What a sweep subtracts: drift, and directions that should do nothing."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.states import States
from regap_interp._linear import remove_span
from regap_interp.directions import random_orthogonal

Arm = Mapping[int, Float[Tensor, "d_model"]]
"""A vector for each layer, subtracted at strength 1."""


def drift_arm(
    states: States, modality: str, layers: Sequence[int] | None = None, *, pairs: str = "harmful"
) -> Arm:
    """The drift of a modality, orthogonal to refusal, by layer.

    Args:
        states: Of text of both kinds, media and their twins.
        modality: Of the media.
        layers: Those of `states` by default.
        pairs: As for `States.drift`.

    Raises:
        ValueError: Too few requests, or layers that were not read.
    """
    chosen = states.layers if layers is None else layers
    return {layer: states.correction(modality, layer, pairs=pairs).vector for layer in chosen}


def control_arms(
    states: States,
    modality: str,
    layers: Sequence[int] | None = None,
    *,
    random: int = 3,
    placebo: int = 3,
    pairs: str = "harmful",
    seed: int = 0,
) -> dict[str, Arm]:
    """Directions as long as the drift and orthogonal to refusal, that are not the drift.

    "random" ones are isotropic. "placebo" ones are made as the drift is, from the same pairs, but
    medium and twin change places in random clusters: they point where real states differ. What is
    left of the drift in them is taken out too (pairs drift more or less far, so they would hold
    much of it, forwards or backwards), and they are scaled to its length.

    Args:
        states: As for `drift_arm`.
        modality: As for `drift_arm`.
        layers: As for `drift_arm`.
        random: How many of the first kind.
        placebo: How many of the second kind.
        pairs: As for `States.drift`.
        seed: Of all draws.

    Raises:
        ValueError: As `drift_arm` does; fewer than none, or a single pair.
    """
    if random < 0 or placebo < 0:
        raise ValueError(f"random is {random}, placebo {placebo}; give how many of each, from 0")
    drift = drift_arm(states, modality, layers, pairs=pairs)
    media, twins = states.requests.pairs(modality, pairs)
    generator = torch.Generator().manual_seed(seed)
    names = [states.requests.cluster[row] for row in media]
    signs = estimate.sign_flips(names, placebo, generator)
    arms: dict[str, dict[int, Tensor]] = {}
    for layer, vector in drift.items():
        refusal = states.refusal(layer).vector
        if random:
            drawn = random_orthogonal(random, like=vector, against=[refusal], seed=seed + layer)
            for index, one in enumerate(drawn):
                arms.setdefault(f"random {index}", {})[layer] = one
        differences = states.at(layer)[media] - states.at(layer)[twins]
        # What all pairs share is taken out, so that uneven signs leave nothing of it.
        own = differences - differences.mean(dim=0)
        for index, sign in enumerate(signs):
            mean = remove_span(sign @ own / len(own), [refusal, vector])
            arms.setdefault(f"placebo {index}", {})[layer] = mean * (vector.norm() / mean.norm())
    return dict(arms)
