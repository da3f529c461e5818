"""The whole story on the organism: collapse, correction, self-rectification, ReGap, and costs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.organism import defences as defence_analysis
from analyses.organism import predictions as prediction_analysis
from analyses.organism.answers import Graded, Tick, ask, encode_samples
from analyses.organism.arms import ARMS, Frozen
from analyses.organism.defences import Defences
from analyses.organism.directions import all_layers
from analyses.organism.measures import Measure
from analyses.organism.predictions import PREDICTIONS
from analyses.organism.signals import Seen, look
from model_adapters import Adapter
from model_adapters.organism.world import SETTINGS, Setting, draw_samples
from regap_interp.adaptive.signals import SIGNALS
from regap_interp.directions import Direction, refusal_direction

LEAST_SEEN = 400
"""Items of a kind that coordinates are read of: windows of the drift need many."""
DIRECTION_ITEMS = 150


@dataclass(frozen=True, eq=False)
class Story:
    """What the demo measured on the report split. Everything was chosen on calibration before."""

    frozen: Frozen
    defences: Defences
    seen: Mapping[Setting, Seen]
    """Harmful and benign items of each modality, the arms' requests first among each kind."""
    text: Mapping[Setting, Seen]
    """Text requests along the directions of each modality."""
    bare: Mapping[Setting, Graded]
    """The bare model's answers to the harmful items of `seen`."""
    predictions: Sequence[Measure]
    n: int
    """Items a cell of the arms."""
    seed: int

    @property
    def media(self) -> list[Setting]:
        """The modalities but text."""
        return self.defences.media

    @property
    def n_seen(self) -> int:
        """Items of a kind that coordinates were read of."""
        return len(next(iter(self.bare.values())).samples)

    def areas(self, setting: Setting) -> dict[str, float]:
        """AUROCs of one modality over rendering levels from 0.4."""
        seen = self.seen[setting]
        return {
            "chosen": seen.area(seen.chosen),
            "uncorrected": seen.area(seen.refusal),
            **{kind: seen.area(seen.signals[kind]) for kind in SIGNALS},
        }

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; what could not be measured is None."""
        found = {
            **self.defences.as_json(),
            "auroc": {setting: self.areas(setting) for setting in self.media},
            "auroc_items": {
                setting: {
                    name: int((self.seen[setting].rough & of).sum())
                    for name, of in (
                        ("harmful", self.seen[setting].harmful),
                        ("benign", ~self.seen[setting].harmful),
                    )
                }
                for setting in self.media
            },
            "calibration": {
                one.modality: _calibration(self.frozen, one.modality) for one in self.frozen.bundles
            },
            "predictions": [
                {
                    **{name: getattr(one, name) for name in ("prediction", "what", "setting")},
                    **dataclasses.asdict(one.rate),
                    "side": one.side,
                    "limit": one.limit,
                    "verdict": one.verdict,
                }
                for one in self.predictions
            ],
            "prediction_texts": PREDICTIONS,
            "split": "report",
            "n": self.n,
            "n_seen": self.n_seen,
            "seed": self.seed,
        }
        return _plain(found)


def tell(
    adapter: Adapter,
    frozen: Frozen,
    *,
    n: int,
    seed: int,
    settings: Sequence[Setting] = SETTINGS,
    tick: Tick | None = None,
) -> Story:
    """Measure everything on the report split, `n` items a cell.

    Args:
        adapter: The organism.
        frozen: What calibration chose.
        n: Items a cell of the arms' table.
        seed: Of items, random directions and intervals.
        settings: Modalities, text among them.
        tick: Called with the number of requests just finished.
    """
    requests = defence_analysis.prepare(adapter, n=n, seed=seed, settings=settings)
    arms = defence_analysis.measure(adapter, frozen, requests, seed=seed, tick=tick)
    refusal = _refusal(adapter, seed, tick)
    seen: dict[Setting, Seen] = {}
    text: dict[Setting, Seen] = {}
    bare: dict[Setting, Graded] = {}
    count = max(n, LEAST_SEEN)
    text_samples = [s for kind in (True, False) for s in requests.samples["text", kind]]
    text_batches = [b for kind in (True, False) for b in requests.batches["text", kind]]
    for setting in arms.media:
        bundle = frozen.bundle(setting)
        samples = {
            kind: draw_samples("report", setting, count, seed=seed, harmful=kind)
            for kind in (True, False)
        }
        batches = {kind: encode_samples(adapter, of) for kind, of in samples.items()}
        seen[setting] = look(
            adapter,
            bundle,
            refusal,
            [*samples[True], *samples[False]],
            [*batches[True], *batches[False]],
            tick=tick,
        )
        text[setting] = look(adapter, bundle, refusal, text_samples, text_batches, tick=tick)
        bare[setting] = ask(adapter, samples[True], batches=batches[True], tick=tick)
    return Story(
        frozen=frozen,
        defences=arms,
        seen=seen,
        text=text,
        bare=bare,
        predictions=prediction_analysis.measure(
            adapter,
            frozen,
            arms,
            seen,
            {setting: graded.tool for setting, graded in bare.items()},
            n=min(count, DIRECTION_ITEMS),
            seed=seed,
            tick=tick,
        ),
        n=n,
        seed=seed,
    )


def items_in_all(n: int, settings: int = len(SETTINGS)) -> int:
    """Requests that `tell` runs with so many modalities, text among them."""
    count = max(n, LEAST_SEEN)
    return (
        2 * n * settings * len(ARMS)
        + 2 * DIRECTION_ITEMS
        + (settings - 1) * (3 * count + 2 * n)
        + prediction_analysis.items_in_all(min(count, DIRECTION_ITEMS), settings - 1)
    )


def _refusal(adapter: Adapter, seed: int, tick: Tick | None) -> dict[int, Direction]:
    """Refusal at every layer, from the direction split, for the picture of the depth."""
    states = [
        all_layers(
            adapter,
            draw_samples("direction", "text", DIRECTION_ITEMS, seed=seed, harmful=kind),
            tick=tick,
        )
        for kind in (True, False)
    ]
    return {
        layer: refusal_direction(states[0][layer], states[1][layer])
        for layer in range(adapter.n_layers)
    }


def _calibration(frozen: Frozen, setting: str) -> dict[str, Any]:
    bundle = frozen.bundle(setting)
    made = bundle.calibration
    plain = ("layer", "diagnostic", "weak", "strong", "threshold", "signal", "fallback")
    return {
        **{name: getattr(bundle, name) for name in plain},
        "reasons": dict(made.reasons),
        "n": dict(made.n),
        "seed": made.seed,
        "data": made.data,
        "auroc": {kind: curve.auroc for kind, curve in made.roc.items()},
        "sweeps": {name: dataclasses.asdict(sweep) for name, sweep in made.sweeps.items()},
        "fixed_strong": dataclasses.asdict(frozen.strong[setting]),
        "refusal_addition": dataclasses.asdict(frozen.addition[setting]),
    }


def _plain(value: Any) -> Any:
    """`value` with NaN as None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
