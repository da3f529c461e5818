"""The circuit by which drift closes the refusal gate on images: it does what it is said to do."""

import random
from typing import Any

import pytest

from analyses.circuits import Circuit, Runs, curves, record_runs, score_edges
from analyses.circuits.nodes import Node
from analyses.patching import Pair
from model_adapters import Adapter
from regap_interp.intervals import wilson
from tests.circuits.conftest import encoded, image_samples

N = 40
BLURRED = 0.9


@pytest.fixture(scope="module")
def held_out(organism: Adapter, lead: Any) -> dict[str, Runs]:
    """Blurred pictures, ablated by sharp ones of the same requests; and the other way round."""
    blurred, sharp = (
        encoded(organism, image_samples(N, seed=3, level=level)) for level in (BLURRED, 0.0)
    )
    return {
        "blurred": record_runs(organism, blurred, sharp, metric=lead),
        "sharp": record_runs(organism, sharp, blurred, metric=lead),
    }


@pytest.fixture(scope="module")
def circuit(organism: Adapter, lead: Any) -> Circuit:
    """Found on requests of another split."""
    blurred, sharp = (
        encoded(organism, image_samples(8, seed=3, level=level, split="calibration"))
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


def test_text_runs_take_the_place_of_parts(organism: Adapter, lead: Any) -> None:
    """Of another length: by a policy of alignment."""
    samples = image_samples(4, seed=3, level=BLURRED)
    pictures = encoded(organism, samples)
    texts = encoded(organism, [one.twin() for one in samples])
    where: Any = [Pair("image", -4), -3, -2, -1]
    runs = record_runs(organism, pictures, texts, metric=lead, positions=where, align="mean")
    assert int(runs.mask.sum()) == 4 * (8 + 3)
    assert bool((runs.ablated(()) < 0).all() and (runs.ablated(runs.nodes) > 0).all())
    with pytest.raises(ValueError, match="does not name the same place"):
        record_runs(organism, pictures, texts, metric=lead)
