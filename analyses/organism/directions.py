"""Refusal and drift of the organism at every layer, from its direction split."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from analyses.organism.answers import Tick, encode_samples
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS, Sample, Setting, draw_samples
from regap_interp.capture import last_residuals
from regap_interp.directions import (
    Direction,
    cosine,
    drift_direction,
    orthogonalise,
    refusal_direction,
)


@dataclass(frozen=True, eq=False)
class LayerGeometry:
    """Refusal, and the drift of every modality, at one layer."""

    layer: int
    refusal: Direction
    """Harmful minus benign text."""
    drift: dict[Setting, Direction]
    """Media minus text twin, harmful pairs, rendering level uniform in [0, 1]."""
    drift_balanced: dict[Setting, Direction]
    """The same with as many benign pairs."""

    def cosine(self, setting: Setting, *, balanced: bool = False) -> float:
        """Cosine of refusal and drift."""
        drift = self.drift_balanced if balanced else self.drift
        return cosine(self.refusal, drift[setting])

    def correction(self, setting: Setting) -> Direction:
        """The drift without its component along refusal, at the length that is left."""
        return orthogonalise(self.drift[setting], self.refusal)


def measure_directions(
    adapter: Adapter,
    *,
    n: int,
    seed: int,
    settings: Sequence[Setting] = MEDIA_SETTINGS,
    tick: Tick | None = None,
) -> list[LayerGeometry]:
    """Directions at every layer from `n` harmful and `n` benign requests of each modality.

    Every medium has its own text twin.
    """

    def states(samples: Sequence[Sample]) -> Float[Tensor, "layer item d_model"]:
        return all_layers(adapter, samples, tick=tick)

    refusal = {
        harmful: states(draw_samples("direction", "text", n, seed=seed, harmful=harmful))
        for harmful in (True, False)
    }
    media: dict[Setting, Float[Tensor, "layer item d_model"]] = {}
    twins: dict[Setting, Float[Tensor, "layer item d_model"]] = {}
    ids: dict[Setting, list[str]] = {}
    for setting in settings:
        samples = [
            sample
            for harmful in (True, False)
            for sample in draw_samples("direction", setting, n, seed=seed, harmful=harmful)
        ]
        media[setting] = states(samples)
        twins[setting] = states([sample.twin() for sample in samples])
        ids[setting] = [sample.id for sample in samples]

    def drift(setting: Setting, layer: int, count: int) -> Direction:
        """From the first `count` pairs: `n` are the harmful ones, `2 * n` are all."""
        return drift_direction(
            media[setting][layer, :count],
            twins[setting][layer, :count],
            media_ids=ids[setting][:count],
            text_ids=ids[setting][:count],
        )

    return [
        LayerGeometry(
            layer=layer,
            refusal=refusal_direction(refusal[True][layer], refusal[False][layer]),
            drift={setting: drift(setting, layer, n) for setting in settings},
            drift_balanced={setting: drift(setting, layer, 2 * n) for setting in settings},
        )
        for layer in range(adapter.n_layers)
    ]


def items_in_all(n: int, settings: int = len(MEDIA_SETTINGS)) -> int:
    """Prefills that `measure_directions` runs."""
    return 2 * n + 4 * n * settings


def all_layers(
    adapter: Adapter, samples: Sequence[Sample], *, tick: Tick | None = None
) -> Float[Tensor, "layer item d_model"]:
    """Last-prompt-token residual stream of every sample after every layer."""
    batches = encode_samples(adapter, samples)
    finished = 0

    def advance(done: int, _: int) -> None:
        nonlocal finished
        if tick is not None:
            tick(done - finished)
        finished = done

    return last_residuals(adapter, batches, layers=range(adapter.n_layers), progress=advance)
