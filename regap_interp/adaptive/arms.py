"""Defences that share one interface: a name, and a graph to be installed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regap_interp.adaptive.bundle import Bundle
from regap_interp.adaptive.regap import ReGap
from regap_interp.directions import random_orthogonal
from regap_interp.graph.edits import add
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import modality, select


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to treat the model."""

    name: str
    graph: Graph
    """Installed with `graph.on(adapter)`; without edits it is the bare model."""
    note: str
    """What it does, for tables."""


def bare_arm() -> Arm:
    """The bare model."""
    return Arm("none", Graph(), "the bare model")


def regap_arm(bundles: Sequence[Bundle]) -> Arm:
    """ReGap."""
    return Arm("regap", ReGap(bundles).graph, "drift correction, strong where the signal says so")


def fixed_arm(name: str, bundles: Sequence[Bundle], strengths: Mapping[str, float]) -> Arm:
    """The same drift correction for every row of a modality.

    Args:
        name: Of the arm.
        bundles: One a modality.
        strengths: Modality -> multiple of the drift direction that is subtracted.
    """
    return _along(
        name,
        bundles,
        {bundle.modality: -strengths[bundle.modality] for bundle in bundles},
        lambda bundle: bundle.drift.vector,
        "drift correction of one strength",
    )


def addition_arm(bundles: Sequence[Bundle], strengths: Mapping[str, float]) -> Arm:
    """The refusal direction added to every row of a modality, at the corrected layer.

    Args:
        bundles: One a modality.
        strengths: Modality -> multiple of the refusal direction.
    """
    return _along(
        "refusal_addition",
        bundles,
        strengths,
        lambda bundle: bundle.refusal.vector,
        "refusal direction added",
    )


def random_arm(bundles: Sequence[Bundle], strengths: Mapping[str, float], *, seed: int) -> Arm:
    """A random direction, orthogonal to refusal and as long as the drift, in place of the drift.

    Args:
        bundles: One a modality.
        strengths: Modality -> multiple that is subtracted.
        seed: Of the direction.
    """
    return _along(
        "random",
        bundles,
        {bundle.modality: -strengths[bundle.modality] for bundle in bundles},
        lambda bundle: random_orthogonal(
            1, like=bundle.drift.vector, against=[bundle.refusal.vector], seed=seed
        )[0],
        f"random direction orthogonal to refusal, seed {seed}",
    )


def _along(
    name: str,
    bundles: Sequence[Bundle],
    strengths: Mapping[str, float],
    vector: Callable[[Bundle], Float[Tensor, "d_model"]],
    note: str,
) -> Arm:
    edits = [
        add(
            "resid_post",
            bundle.layer,
            vector(bundle),
            strength=select(modality(bundle.modality), strengths[bundle.modality], 0.0),
        )
        for bundle in bundles
    ]
    return Arm(name, Graph(*edits), note)


def smallest_strength(
    refused_share: Callable[[float], float],
    target: float,
    *,
    grid: Sequence[float],
    halvings: int = 2,
) -> tuple[float, float, bool]:
    """The smallest strength that refuses at least a target share of harmful items.

    The grid is searched upwards, then the step below the first hit is halved.

    Args:
        refused_share: Share of harmful calibration items refused at a strength.
        target: Share to reach.
        grid: Rising strengths.
        halvings: How often the last step is halved.

    Returns:
        The strength, its share, and whether the target was reached; if not, the strength of the
        grid that came closest.

    >>> from regap_interp import smallest_strength
    >>> smallest_strength(lambda strength: min(strength, 1.0), 0.6, grid=[0.5, 1.0, 1.5])
    (0.625, 0.625, True)
    """
    seen: dict[float, float] = {}
    low = 0.0
    for strength in grid:
        seen[strength] = refused_share(strength)
        if seen[strength] >= target:
            high = strength
            for _ in range(halvings):
                middle = (low + high) / 2
                seen[middle] = refused_share(middle)
                low, high = (low, middle) if seen[middle] >= target else (middle, high)
            return high, seen[high], True
        low = strength
    best = max(seen, key=lambda strength: (seen[strength], -strength))
    return best, seen[best], False
