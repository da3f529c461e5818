"""What ReGap sees in items of one modality: coordinates bare, under the probe, and corrected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.organism.answers import Tick, encode_samples
from model_adapters import Adapter, Batch
from model_adapters.organism.world import Sample
from regap_interp.adaptive.bundle import Bundle
from regap_interp.adaptive.regap import ReGap
from regap_interp.adaptive.signals import SIGNALS, Signal, refusal_coordinate, signal_node
from regap_interp.directions import Direction
from regap_interp.graph import Graph, add, read
from regap_interp.graph.nodes import Node
from regap_interp.separability import auroc

ROUGH = 0.4
"""Rendering levels from here on are far enough from text for the gate to be closed."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One modality's items; every coordinate is in units of its direction's norm."""

    bundle: Bundle
    samples: tuple[Sample, ...]
    harmful: Bool[Tensor, "item"]
    level: Float[Tensor, "item"]
    """Rendering level."""
    drift: Float[Tensor, "item"]
    """At the corrected layer, bare."""
    refusal: Float[Tensor, "item"]
    """At the diagnostic layer, bare."""
    drift_after: Float[Tensor, "item"]
    """At the corrected layer, under ReGap."""
    refusal_after: Float[Tensor, "item"]
    """At the diagnostic layer, under ReGap."""
    signals: Mapping[Signal, Float[Tensor, "item"]]
    layers: tuple[int, ...]
    """From the corrected layer to the last."""
    bare: Float[Tensor, "layer item"]
    """Refusal at each of `layers`."""
    weak: Float[Tensor, "layer item"]
    """The same under the weak correction."""

    @property
    def rough(self) -> Bool[Tensor, "item"]:
        """Items whose rendering level is at least `ROUGH`."""
        return self.level >= ROUGH

    @property
    def chosen(self) -> Float[Tensor, "item"]:
        """The bundle's own signal."""
        return self.signals[self.bundle.signal]

    def area(self, values: Float[Tensor, "item"]) -> float:
        """AUROC of harmful against benign among the rough items."""
        return auroc(values[self.rough & self.harmful], values[self.rough & ~self.harmful])


def look(
    adapter: Adapter,
    bundle: Bundle,
    refusal: Mapping[int, Direction],
    samples: Sequence[Sample],
    batches: Sequence[Batch] | None = None,
    *,
    tick: Tick | None = None,
) -> Seen:
    """Run the probe on samples of one modality and read everything, one pass an item.

    Args:
        adapter: The organism.
        bundle: Of the modality of the samples (text is seen too, and never corrected).
        refusal: Refusal direction of the layers after the corrected one.
        samples: Harmful and benign.
        batches: The samples encoded before.
        tick: Called after every batch.
    """
    layers = tuple(range(bundle.layer, adapter.n_layers))
    at = {**refusal, bundle.layer: bundle.refusal, bundle.diagnostic: bundle.diagnostic_refusal}
    weak = (add("resid_post", bundle.layer, bundle.drift, strength=-bundle.weak),)
    outputs: dict[str, Node] = {
        "drift": read("resid_post", bundle.layer, under=()).project(bundle.drift, unit="norm"),
        "drift_after": read("resid_post", bundle.layer).project(bundle.drift, unit="norm"),
        "refusal_after": refusal_coordinate(bundle.diagnostic, bundle.diagnostic_refusal),
    }
    for layer in layers:
        outputs[f"bare.{layer}"] = refusal_coordinate(layer, at[layer], ())
        outputs[f"weak.{layer}"] = refusal_coordinate(layer, at[layer], weak)
    for kind in SIGNALS:
        outputs[kind] = signal_node(
            kind,
            weak,
            layer=bundle.layer,
            refusal=bundle.refusal,
            diagnostic=bundle.diagnostic,
            diagnostic_refusal=bundle.diagnostic_refusal,
        )
    graph = Graph(*ReGap([bundle]).graph.edits, outputs=outputs)
    parts: dict[str, list[Tensor]] = {name: [] for name in outputs}
    for batch in batches if batches is not None else encode_samples(adapter, samples):
        run = graph.run(adapter, batch)
        for name, found in parts.items():
            found.append(run[name].detach().to("cpu", torch.float64))
        if tick is not None:
            tick(len(batch))
    value = {name: torch.cat(found) for name, found in parts.items()}
    return Seen(
        bundle=bundle,
        samples=tuple(samples),
        harmful=torch.tensor([sample.harmful for sample in samples]),
        level=torch.tensor([sample.level for sample in samples], dtype=torch.float64),
        drift=value["drift"],
        refusal=value[f"bare.{bundle.diagnostic}"],
        drift_after=value["drift_after"],
        refusal_after=value["refusal_after"],
        signals={kind: value[kind] for kind in SIGNALS},
        layers=layers,
        bare=torch.stack([value[f"bare.{layer}"] for layer in layers]),
        weak=torch.stack([value[f"weak.{layer}"] for layer in layers]),
    )
