"""The searches of calibration: each tries values on the calibration items and tells what it saw."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regap_interp.adaptive.bundle import Sweep
from regap_interp.adaptive.geometry import ModalityGeometry
from regap_interp.adaptive.item import Item
from regap_interp.adaptive.outcomes import Judged
from regap_interp.adaptive.runs import Prepared, kl
from regap_interp.adaptive.signals import SIGNALS, Signal, refusal_coordinate
from regap_interp.graph.edits import add
from regap_interp.graph.graph import Graph
from regap_interp.separability import auroc, separation

Right = Callable[[Item, str], bool]
"""Tells whether an answer is the right one for an item."""

LAYER_KL = 0.1
"""Greatest KL of benign next-token distributions at strength 1 where a layer is corrected."""
MOST_DEGENERATE = 0.05
"""Share of degenerate answers from which a strength is too strong."""
DEEPEST = 0.8
"""Share of the depth up to which the signal is read."""


@dataclass(frozen=True, eq=False)
class Both:
    """The calibration items of both kinds."""

    harmful: Prepared
    benign: Prepared

    def values(self, graph: Graph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs of a graph for harmful and for benign items."""
        return self.harmful.values(graph), self.benign.values(graph)


def diagnostic_layers(layer: int, n_layers: int) -> range:
    """Where the signal of a correction at `layer` may be read."""
    return range(layer + 1, max(int(DEEPEST * n_layers), layer + 1) + 1)


def corrected_by(geometry: ModalityGeometry, layer: int, strength: float) -> Graph:
    """Every row corrected alike."""
    return Graph(add("resid_post", layer, geometry.drift[layer], strength=-strength))


def sweep_layers(
    few: Both, geometry: ModalityGeometry, layers: Sequence[int], n_layers: int
) -> tuple[int, Sweep, str]:
    """The layer whose correction at strength 1 brings back the most separability later on."""
    last = max(diagnostic_layers(max(layers), n_layers))
    later = range(min(layers) + 1, last + 1)
    bare = few.values(
        Graph(outputs={str(at): refusal_coordinate(at, geometry.refusal[at]) for at in later})
    )
    bare_benign = few.benign.log_probabilities(Graph())
    rows = []
    for layer in layers:
        read_at = diagnostic_layers(layer, n_layers)
        edit = add("resid_post", layer, geometry.drift[layer], strength=-1.0)
        outputs = {str(at): refusal_coordinate(at, geometry.refusal[at]) for at in read_at}
        corrected = few.values(Graph(edit, outputs=outputs))
        gains = [
            _cohens_d(*(one[str(at)] for one in corrected))
            - _cohens_d(*(one[str(at)] for one in bare))
            for at in read_at
        ]
        shift = kl(bare_benign, few.benign.log_probabilities(Graph(edit)))
        rows.append((float(layer), sum(gains) / len(gains), shift))
    within = [row for row in rows if row[2] <= LAYER_KL]
    best = max(within or rows, key=lambda row: row[1])
    why = (
        f"largest mean gain of CRS at later layers ({best[1]:+.2f} at strength 1), "
        + (
            f"among layers with a benign KL of at most {LAYER_KL}"
            if within
            else f"the benign KL being above {LAYER_KL} at every layer ({best[2]:.2f} here)"
        )
        + f"; {len(few.harmful)} harmful and {len(few.benign)} benign items"
    )
    return int(best[0]), Sweep(("layer", "crs_gain", "benign_kl"), tuple(rows)), why


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Refusal coordinates of one class of items, in units of the norm."""

    corrected_layer: Float[Tensor, "item"]
    bare: Mapping[int, Float[Tensor, "item"]]
    """By diagnostic layer."""
    weak: Mapping[tuple[float, int], Float[Tensor, "item"]]
    """By weak strength and diagnostic layer."""

    def signal(self, kind: Signal, strength: float, at: int) -> Float[Tensor, "item"]:
        """What `signal_node` of this kind would be."""
        after = self.weak[strength, at]
        if kind == "absolute":
            return after
        # The correction is orthogonal to refusal, so it leaves the corrected layer's coordinate.
        return after - (self.corrected_layer if kind == "depth_gain" else self.bare[at])

    def of(self, chosen: Bool[Tensor, "item"]) -> "Coordinates":
        """Of some of the items."""
        return Coordinates(
            self.corrected_layer[chosen],
            {at: value[chosen] for at, value in self.bare.items()},
            {key: value[chosen] for key, value in self.weak.items()},
        )


def measure_coordinates(
    both: Both,
    geometry: ModalityGeometry,
    layer: int,
    strengths: Sequence[float],
    read_at: Sequence[int],
) -> tuple[Coordinates, Coordinates]:
    """Coordinates of harmful and benign items under every weak strength, one pass an item."""
    outputs = {"corrected": refusal_coordinate(layer, geometry.refusal[layer], ())}
    for at in read_at:
        outputs[f"bare.{at}"] = refusal_coordinate(at, geometry.refusal[at], ())
    for strength in strengths:
        weak = (add("resid_post", layer, geometry.drift[layer], strength=-strength),)
        for at in read_at:
            outputs[f"{strength}.{at}"] = refusal_coordinate(at, geometry.refusal[at], weak)
    graph = Graph(outputs=outputs)

    def read_out(values: Mapping[str, Tensor]) -> Coordinates:
        return Coordinates(
            values["corrected"],
            {at: values[f"bare.{at}"] for at in read_at},
            {(one, at): values[f"{one}.{at}"] for one in strengths for at in read_at},
        )

    harmful, benign = both.values(graph)
    return read_out(harmful), read_out(benign)


def sweep_signals(
    harmful: Coordinates,
    benign: Coordinates,
    strengths: Sequence[float],
    read_at: Sequence[int],
) -> tuple[dict[tuple[float, int, Signal], float], Sweep]:
    """AUROC of every signal at every weak strength and diagnostic layer."""
    areas = {
        (strength, at, kind): auroc(
            harmful.signal(kind, strength, at), benign.signal(kind, strength, at)
        )
        for strength in strengths
        for at in read_at
        for kind in SIGNALS
    }
    rows = tuple(
        (
            strength,
            float(at),
            auroc(harmful.bare[at], benign.bare[at]),
            *(areas[strength, at, kind] for kind in SIGNALS),
        )
        for strength in strengths
        for at in read_at
    )
    return areas, Sweep(("weak", "diagnostic", "uncorrected", *SIGNALS), rows)


def sweep_costs(
    benign: Prepared,
    geometry: ModalityGeometry,
    layer: int,
    strengths: Sequence[float],
    right: Right | None,
) -> tuple[dict[float, float], Sweep, str]:
    """What correcting every benign item by each strength costs: right answers, else KL."""
    costs: dict[float, float] = {}
    if right is None:
        bare = benign.log_probabilities(Graph())
        for strength in strengths:
            edited = benign.log_probabilities(corrected_by(geometry, layer, strength))
            costs[strength] = kl(bare, edited)
        measure = "benign_kl"
    else:
        before = _share_right(right, benign.items, benign.answers())
        for strength in strengths:
            answers = benign.answers(corrected_by(geometry, layer, strength))
            costs[strength] = before - _share_right(right, benign.items, answers)
        measure = "benign_right_lost"
    return costs, Sweep(("weak", measure), tuple(costs.items())), measure


def sweep_strong(
    harmful: Prepared,
    geometry: ModalityGeometry,
    layer: int,
    strengths: Sequence[float],
    triggered: Bool[Tensor, "item"],
    untriggered: Judged,
    judged: Callable[[Sequence[str]], Judged],
    target: float,
) -> tuple[float, Sweep, str]:
    """The smallest strength with which ReGap refuses a target share of the harmful items."""
    rows = []
    for strength in strengths:
        answers = harmful.answers(corrected_by(geometry, layer, strength))
        strong = judged(answers)
        combined = torch.where(triggered, strong.refused, untriggered.refused)
        broken = sum(map(degenerate, answers)) / len(answers)
        rows.append((strength, _share(combined), _share(strong.refused), broken))
    sound = [row for row in rows if row[3] <= MOST_DEGENERATE] or rows
    enough = [row for row in sound if row[1] >= target]
    chosen = min(enough) if enough else max(sound, key=lambda row: (row[1], -row[0]))
    why = (
        f"smallest strength that reaches {target:g}" if enough else f"{target:g} is not reached"
    ) + (
        f": ReGap refuses {chosen[1]:.4f} of {len(harmful)} harmful items "
        f"(best {max(row[1] for row in sound):.4f}), {chosen[3]:.4f} degenerate answers"
    )
    columns = ("strong", "regap_refused", "fixed_refused", "degenerate")
    return chosen[0], Sweep(columns, tuple(rows)), why


def degenerate(answer: str, repeats: int = 4) -> bool:
    """Whether an answer is empty, or says one to four words over and over, `repeats` times."""
    words = answer.split()
    if not words:
        return True
    for size in range(1, 5):
        run = 0
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else 0
            if run >= size * (repeats - 1):
                return True
    return False


def _share_right(right: Right, items: Sequence[Item], answers: Sequence[str]) -> float:
    hits = sum(bool(right(item, said)) for item, said in zip(items, answers, strict=True))
    return hits / len(items)


def _share(outcomes: Bool[Tensor, "item"]) -> float:
    return float(outcomes.double().mean())


def _cohens_d(harmful: Tensor, benign: Tensor) -> float:
    values = torch.cat([harmful, benign])
    return separation(values, torch.arange(len(values)) < len(harmful)).cohens_d
