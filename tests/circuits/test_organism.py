"""The circuits by which drift closes the refusal gate: they do what they are said to do."""

import random
from typing import Any

import pytest

from analyses.circuits import Circuit, Runs, curves, record_runs, score_edges
from analyses.circuits.nodes import Node
from analyses.circuits.parts import EdgeParts
from analyses.patching import Pair
from model_adapters import Adapter
from model_adapters.organism.world import Setting, Split
from regap_interp.intervals import wilson
from tests.circuits.conftest import encoded, media_samples

N = 32
BLURRED = 0.9


@pytest.fixture(scope="module")
def held_out(organism: Adapter, lead: Any) -> dict[str, Runs]:
    """Blurred pictures, ablated by sharp ones of the same requests; and the other way round."""
    blurred, sharp = (
        encoded(organism, media_samples("image", N, seed=3, level=level))
        for level in (BLURRED, 0.0)
    )
    return {
        "blurred": record_runs(organism, blurred, sharp, metric=lead),
        "sharp": record_runs(organism, sharp, blurred, metric=lead),
    }


@pytest.fixture(scope="module")
def circuit(organism: Adapter, lead: Any) -> Circuit:
    """Found on requests of another split."""
    blurred, sharp = (
        encoded(organism, media_samples("image", 8, seed=3, level=level, split="calibration"))
        for level in (BLURRED, 0.0)
    )
    return score_edges(record_runs(organism, blurred, sharp, metric=lead), steps=4).greedy(5)


def refused(runs: Runs, nodes: Any) -> Any:
    """Share of requests that are refused, with its interval."""
    return wilson(int((runs.ablated(nodes) > 0).sum()), N)


def test_ablating_the_drift_circuit_opens_the_gate(
    held_out: dict[str, Runs], circuit: Circuit
) -> None:
    runs = held_out["blurred"]
    assert all(edge.contribution < 0 for edge in circuit.edges)
    assert 2 <= len(circuit.inner) <= 5
    assert refused(runs, ()).value == 0
    assert refused(runs, circuit.inner).low > 0.8
    # Random circuits of equal size, kind by kind, mostly do nothing.
    draw, shares = random.Random(0), []
    for _ in range(8):
        other: list[Node] = []
        for kind in ("head", "mlp"):
            known = [node for node in runs.nodes if node.kind == kind]
            other += draw.sample(known, sum(node.kind == kind for node in circuit.inner))
        shares.append(refused(runs, other).value)
    assert sum(shares) / len(shares) < 0.35


def test_the_drift_of_the_circuit_alone_closes_it(
    held_out: dict[str, Runs], circuit: Circuit
) -> None:
    assert refused(held_out["sharp"], ()).value == 1
    assert refused(held_out["sharp"], circuit.inner).high < 0.2


def test_the_circuit_beats_random_ones(held_out: dict[str, Runs], circuit: Circuit) -> None:
    found = curves(held_out["blurred"], [circuit], controls=6, seed=1, resamples=200)
    assert float(found.completeness.low[0]) > 0.5
    assert float(found.completeness.low[0]) > float(found.random_completeness.value[0]) + 0.2


PLACES: dict[Setting, Any] = {
    "image": [Pair("image", -4), -3, -2, -1],
    "audio": [Pair("audio", -4), -3, -2, -1],
    "video": [Pair("video", -4), -3, -2, -1],
    "omni": [Pair("audio", -6), Pair("image", -4), -3, -2, -1],
}
"""Where blurred media stand, and the word of the text twin; then the tokens behind it."""


def from_text(organism: Adapter, lead: Any, setting: Setting, n: int, split: Split) -> Runs:
    """Blurred media that are answered; their parts ablated by those of the text twins."""
    samples = media_samples(setting, n, seed=3, level=BLURRED, split=split)
    blurred, texts = encoded(organism, samples), encoded(organism, [one.twin() for one in samples])
    return record_runs(
        organism, blurred, texts, metric=lead, positions=PLACES[setting], align="mean"
    )


@pytest.mark.parametrize("setting", PLACES)
def test_text_recovers_refusal_through_a_circuit(
    organism: Adapter, lead: Any, setting: Setting
) -> None:
    """Ten edges out of two thousand, found on other requests: as nodes, and as nothing but edges,
    they bring back the refusal that drift took away. Random ones between nodes of the same kinds
    sometimes do so too, but none of them moves the lead as far."""
    sampled = 12 if setting == "image" else 0
    scores = score_edges(
        from_text(organism, lead, setting, 6, "calibration"), steps=3, check=sampled, seed=1
    )
    if scores.check is not None:
        assert scores.check.agreement.n == 12
        assert scores.check.agreement.spearman > 0.7
        assert scores.check.agreement.largest < 0.2
    circuit = scores.greedy(10)
    assert any(node.kind == "embed" for node in scores.greedy(20).nodes)
    runs = from_text(organism, lead, setting, 8, "report")
    edges = [edge.ends for edge in circuit.edges]
    assert len(edges) == 10 and len(runs.edges) > 1500

    def refused(lead_of: Any) -> float:
        return float((lead_of > 0).double().mean())

    bare, put_back = runs.ablated(), runs.ablated(edges=edges)
    assert refused(bare) == 0 and refused(runs.ablated(runs.nodes)) == 1
    assert refused(runs.ablated(circuit.inner)) > 0.85
    assert refused(put_back) > 0.85
    parts, draw = EdgeParts(runs), random.Random(0)
    others = [runs.ablated(edges=parts.alike(frozenset(edges), draw)) for _ in range(6)]
    assert sum(map(refused, others)) / 6 < 0.6
    assert max(float(one.mean()) for one in others) < float(put_back.mean())


def test_text_runs_are_aligned_by_a_policy(organism: Adapter, lead: Any) -> None:
    runs = from_text(organism, lead, "image", 4, "report")
    assert int(runs.mask.sum()) == 4 * (8 + 3)
    samples = media_samples("image", 2, seed=3, level=BLURRED)
    pictures, texts = encoded(organism, samples), encoded(organism, [s.twin() for s in samples])
    with pytest.raises(ValueError, match="does not name the same place"):
        record_runs(organism, pictures, texts, metric=lead)
