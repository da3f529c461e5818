"""Sums that hold to the last digit, on the random organism and on other families."""

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
import torch

import model_adapters
import regap_interp as ri
from analyses.circuits import (
    Runs,
    Scores,
    curves,
    direct_attribution,
    minimality,
    record_runs,
    score_edges,
)
from analyses.circuits.nodes import Node
from analyses.circuits.parts import By, EdgeParts, NodeParts
from analyses.patching import Coordinate, LogitDifference
from model_adapters import Adapter
from model_adapters.tiny import builders
from tests.circuits.conftest import runs_of

METRIC = LogitDifference(right=7, wrong=20)
BY: tuple[By, ...] = ("nodes", "edges")
FAMILIES = {
    "qwen3_vl": {"head", "added"},
    "llava": {"head"},
    "gemma3": {"attn"},
    "cohere2": {"head"},
    "granite": {"attn"},
}
"""With the kinds of nodes beside embeddings and MLPs: features added between layers, norms and
multipliers behind attention, blocks side by side."""


def some_direction(adapter: Adapter, layer: int) -> ri.Direction:
    torch.manual_seed(layer)
    origin = ri.Origin(adapter.fingerprint, "resid_post", layer)
    vector, centre = torch.randn(2, adapter.d_model, dtype=torch.float64)
    return ri.Direction(vector, centre, 0, 0, origin)


def outgoing(scores: Scores) -> torch.Tensor:
    """Sums of the edges that leave each node."""
    sums = torch.zeros_like(scores.of_nodes)
    return sums.index_add(1, torch.tensor(scores.senders), scores.of_edges)


def direct_sums(adapter: Adapter, batch: Any) -> None:
    layer = adapter.n_layers - 1
    direction = some_direction(adapter, layer)
    with adapter.trace(batch):
        stream = adapter.resid_post[layer].save()
    wanted = direction.fraction(stream[torch.arange(len(batch)), batch.last].double())
    for spans in (False, True):
        found = direct_attribution(adapter, batch, direction, spans=spans)
        torch.testing.assert_close(found.total, wanted, atol=1e-5, rtol=1e-5)
        together = found.of_nodes.sum(dim=1) + found.constant
        torch.testing.assert_close(together, found.total, atol=1e-5, rtol=1e-5)
    heads = [i for i, node in enumerate(found.nodes) if node.kind == "head"]
    if heads:
        assert found.of_spans is not None
        of_heads = found.of_spans[:, :, heads].sum(dim=1)
        torch.testing.assert_close(of_heads, found.of_nodes[:, heads], atol=1e-5, rtol=1e-4)
        if "image" in adapter.media:
            assert bool(found.of_spans[:, found.spans.index("image"), heads].any())


def edited_sums(adapter: Adapter, batch: Any) -> None:
    """Under edits the parts still add up, and what the edit writes is a part of its own."""
    layer = adapter.n_layers - 1
    direction, pushed = some_direction(adapter, layer), some_direction(adapter, 0)
    graph = ri.Graph(ri.add("resid_post", 0, pushed, strength=0.5))
    bare = direct_attribution(adapter, batch, direction)
    found = direct_attribution(adapter, batch, direction, graph=graph)
    with adapter.trace(batch):
        adapter.resid_post[0] = adapter.resid_post[0] + 0.5 * pushed.vector
        stream = adapter.resid_post[layer].save()
    wanted = direction.fraction(stream[torch.arange(len(batch)), batch.last].double())
    torch.testing.assert_close(found.total, wanted, atol=1e-5, rtol=1e-5)
    change = found.minus(bare)
    for one in (found, change):
        torch.testing.assert_close(
            one.of_nodes.sum(dim=1) + one.constant, one.total, atol=1e-5, rtol=1e-4
        )
    added = change.of_nodes[:, change.nodes.index(Node(0, "added"))]
    mine = 0.5 * pushed.vector @ direction.unit / direction.norm
    torch.testing.assert_close(added, mine.expand(len(batch)), atol=1e-5, rtol=1e-4)
    first = [i for i, node in enumerate(change.nodes) if node.layer < 1 and node.kind != "added"]
    assert float(change.of_nodes[:, first].abs().max()) < 1e-5
    assert float(change.of_nodes.abs().max(dim=0).values.median()) > 1e-5


def test_direct_attribution_adds_up(random_organism: Adapter, pair_of: Any) -> None:
    direct_sums(random_organism, pair_of()[0])


def test_spans_are_reads_by_hand(random_organism: Adapter, pair_of: Any) -> None:
    """Without the values of the picture in one layer, its heads lose what they read there."""
    batch, layer = pair_of()[0], 2
    direction = some_direction(random_organism, layer)
    found = direct_attribution(random_organism, batch, direction, spans=True)
    module: Any = random_organism.resid_post.site(layer).envoy._module.self_attn.v_proj
    image = batch.mask("image")[..., None]
    handle = module.register_forward_hook(lambda _, args, output: output * ~image)
    try:
        without = direct_attribution(random_organism, batch, direction)
    finally:
        handle.remove()
    heads = [i for i, node in enumerate(found.nodes) if node.kind == "head" and node.layer == layer]
    assert found.of_spans is not None
    lost = (found.of_nodes - without.of_nodes)[:, heads]
    read = found.of_spans[:, found.spans.index("image"), heads]
    torch.testing.assert_close(lost, read, atol=1e-6, rtol=1e-4)


def test_edges_add_up_to_nodes(runs: Runs, scores: Scores) -> None:
    torch.testing.assert_close(outgoing(scores), scores.of_nodes, atol=1e-5, rtol=1e-4)
    path = score_edges(runs, steps=2)
    torch.testing.assert_close(outgoing(path), path.of_nodes, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(path.of_nodes, scores.of_nodes)


def test_an_edge_is_the_gradient_through_one_head(random_organism: Adapter, runs: Runs) -> None:
    """By finite differences: the picture's embeddings move for one head alone."""
    scores = score_edges(runs)
    layer, head, size = 0, 1, 1e-2
    embedding, receiver = Node(-1, "embed", "image"), Node(layer, "head", head)
    place = scores.nodes.index(receiver), scores.nodes.index(embedding)
    (edge,) = (
        i
        for i, ends in enumerate(zip(scores.receivers, scores.senders, strict=True))
        if ends == place
    )
    moved = (runs.other.sites["embed", None] - runs.base.sites["embed", None]) * size
    moved = moved * runs.base.batch.mask("image")[..., None]
    kept = []
    for sign in (1, -1):
        read: list[torch.Tensor] = []
        first = random_organism.hook("embed", None, lambda v, s=sign: v + s * moved)
        second = random_organism.hook("z", layer, lambda v, read=read: read.append(v.clone()))
        random_organism(runs.base.batch)
        first.remove()
        second.remove()

        def put(value: torch.Tensor, read: Any = read) -> torch.Tensor:
            new = value.clone()
            new[:, :, head] = read[0][:, :, head]
            return new

        handle = random_organism.hook("z", layer, put)
        kept.append(runs.ablated(()))
        handle.remove()
    wanted = (kept[1] - kept[0]) / (2 * size)
    torch.testing.assert_close(scores.of_edges[:, edge], wanted, atol=2e-4, rtol=2e-2)


def linear_paths(adapter: Adapter, pair: Any) -> None:
    """Edges into a coordinate are exact, as is the last layer's MLP patched alone."""
    layer = adapter.n_layers - 2
    metric = Coordinate(some_direction(adapter, layer))
    runs = record_runs(adapter, *pair, metric=metric)
    scores = score_edges(runs)
    ours, theirs = (direct_attribution(adapter, one, metric.direction) for one in pair)
    last = [i for i, to in enumerate(scores.receivers) if to == len(scores.nodes)]
    assert [scores.senders[i] for i in last] == list(range(len(scores.nodes)))
    difference = ours.of_nodes - theirs.of_nodes
    torch.testing.assert_close(scores.of_edges[:, last], difference, atol=1e-5, rtol=1e-4)
    mlp = Node(layer, "mlp")
    patched = runs.ablated(()) - runs.ablated([mlp])
    at = last[scores.nodes.index(mlp)]
    torch.testing.assert_close(scores.of_edges[:, at], patched, atol=1e-5, rtol=1e-4)


def test_linear_paths_are_exact(random_organism: Adapter, pair_of: Any) -> None:
    linear_paths(random_organism, pair_of())


def test_random_circuits_are_measured(small: tuple[Runs, Scores]) -> None:
    runs, scores = small
    circuit = scores.greedy(3)
    found = curves(runs, [circuit], controls=1, resamples=5)
    parts = NodeParts(runs)
    other = parts.alike(parts.within(circuit), random.Random(0))
    assert Counter(node.kind for node in other) == Counter(node.kind for node in circuit.nodes)
    bare, none = runs.ablated().mean(), runs.ablated(runs.nodes).mean()
    left = runs.ablated(set(runs.nodes) - other).mean()
    share = float((left - none) / (bare - none))
    assert float(found.random_faithfulness.value[0]) == pytest.approx(share, abs=1e-9)
    assert share != pytest.approx(float(found.faithfulness.value[0]))


@pytest.mark.parametrize("by", BY)
def test_full_and_empty_graphs(small: tuple[Runs, Scores], by: By) -> None:
    runs, scores = small
    every = scores.top(10**6)
    assert set(every.nodes) == set(runs.nodes)
    nothing = dataclasses.replace(every, nodes={}, edges=())
    three = [nothing, scores.greedy(20), every]
    found = curves(runs, three, by=by, controls=2, resamples=50)
    faithfulness = found.faithfulness.value
    assert faithfulness[[0, 2]].tolist() == pytest.approx([0, 1], abs=1e-4)
    assert float(found.completeness.value[0]) == pytest.approx(0, abs=1e-4)
    assert found.random_faithfulness.value[[0, 2]].tolist() == pytest.approx([0, 1], abs=1e-4)
    assert found.n_edges == (0, 20, len(runs.edges))
    if by == "edges":
        assert float(found.completeness.value[2]) == pytest.approx(1, abs=1e-4)
    bare, none = runs.ablated().mean(), runs.ablated(runs.nodes).mean()
    if by == "nodes":
        left = runs.ablated(set(runs.nodes) - set(three[1].nodes))
        without = runs.ablated(three[1].inner)
    else:
        mine = {edge.ends for edge in three[1].edges}
        left = runs.ablated(edges=set(runs.edges) - mine)
        without = runs.ablated(edges=mine)
    wanted = (left.mean() - none) / (bare - none), (bare - without.mean()) / (bare - none)
    for got, share in zip((faithfulness, found.completeness.value), wanted, strict=True):
        assert float(got[1]) == pytest.approx(float(share), abs=1e-6)


def test_everything_ablated_is_the_other_run(runs: Runs, pair_of: Any) -> None:
    ours, theirs = pair_of()
    swapped = record_runs(runs.adapter, theirs, ours, metric=METRIC)
    for one, other in ((runs, swapped), (swapped, runs)):
        torch.testing.assert_close(one.ablated(one.nodes), other.ablated(()), atol=1e-4, rtol=0)
    logits = runs.adapter(ours).logits[:, -1].double()
    torch.testing.assert_close(runs.ablated(()), logits[:, 7] - logits[:, 20], atol=1e-5, rtol=0)


def test_an_edge_lost_is_a_smaller_circuit(small: tuple[Runs, Scores]) -> None:
    runs, scores = small
    circuit = scores.greedy(4)
    found = minimality(runs, circuit, by="edges", controls=2, resamples=50)
    edge = found.edges[0]
    left = tuple(one for one in circuit.edges if one.ends != edge)
    without = dataclasses.replace(circuit, edges=left)
    both = curves(runs, [circuit, without], by="edges", controls=0, resamples=50).faithfulness
    assert float(both.value[0] - both.value[1]) == pytest.approx(
        float(found.loss.value[0]), abs=1e-6
    )
    assert found.nodes == () and list(found.to_frame()) == ["edge", "loss", "low", "high"]


def test_random_edges_are_of_the_same_make(runs: Runs, scores: Scores) -> None:
    parts = EdgeParts(runs)
    mine = parts.within(scores.greedy(20))
    other = parts.alike(mine, random.Random(0))
    assert other == parts.alike(mine, random.Random(0)) != mine

    def kinds(edges: Any) -> Counter[tuple[Any, str]]:
        return Counter(
            (one.part if one.kind == "embed" else one.kind, to.kind) for one, to in edges
        )

    assert kinds(other) == kinds(mine)
    reached = {runs.readout} | {sender for sender, _ in other}
    assert sum(to in reached for _, to in other) >= 18


def test_losses_are_differences_of_faithfulness(small: tuple[Runs, Scores]) -> None:
    runs, scores = small
    circuit = scores.greedy(6)
    found = minimality(runs, circuit, controls=3, resamples=50)
    node = found.nodes[0]
    smaller = {one: value for one, value in circuit.nodes.items() if one != node}
    without = dataclasses.replace(circuit, nodes=smaller, edges=())
    both = curves(runs, [circuit, without], controls=0, resamples=50).faithfulness.value
    assert float(both[0] - both[1]) == pytest.approx(float(found.loss.value[0]), abs=1e-6)
    assert len(found.control) == 3
    rest = set(runs.nodes) - set(circuit.nodes)
    bare, none = runs.ablated().mean(), runs.ablated(runs.nodes).mean()
    added = [
        float((runs.ablated(rest - {one}) - runs.ablated(rest)).mean() / (bare - none))
        for one in rest
    ]
    for gain in found.control.tolist():
        assert min(abs(gain - one) for one in added) < 1e-9
    assert max(map(abs, added)) > 1e-4
    assert found.to_frame().shape == (len(circuit.nodes), 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    pair = runs_of(adapter)
    direct_sums(adapter, pair[0])
    edited_sums(adapter, pair[0])
    linear_paths(adapter, pair)
    metric = LogitDifference(right=3, wrong=7)
    runs = record_runs(adapter, *pair, metric=metric)
    other = record_runs(adapter, pair[1], pair[0], metric=metric)
    torch.testing.assert_close(runs.ablated(runs.nodes), other.ablated(()), atol=1e-4, rtol=0)
    assert {node.kind for node in runs.nodes} - {"embed", "mlp"} == FAMILIES[name]
    scores = score_edges(runs, check=4)
    torch.testing.assert_close(outgoing(scores), scores.of_nodes, atol=1e-5, rtol=1e-3)
    circuits = [scores.greedy(3), scores.greedy(6)]
    for by in BY:
        found = curves(runs, circuits, by=by, controls=1, resamples=20)
        assert bool(found.faithfulness.value.isfinite().all())
        needed = minimality(runs, circuits[0], by=by, controls=1, resamples=20)
        assert len(needed.parts) == len(circuits[0].nodes if by == "nodes" else circuits[0].edges)
    assert len(circuits[0].compare(circuits[1]).shared) == 3


@pytest.mark.parametrize(
    ("name", "why"), [("gemma3n_text", "several streams"), ("gemma4_text", "more than add")]
)
def test_streams_that_are_no_sums_are_refused(name: str, why: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    with pytest.raises(ValueError, match=why):
        record_runs(adapter, *runs_of(adapter), metric=METRIC)


def test_fused_values_cannot_be_told_apart() -> None:
    adapter = model_adapters.load(builders()["phi3"]())
    with pytest.raises(ValueError, match="no v_proj"):
        direct_attribution(adapter, runs_of(adapter)[0], some_direction(adapter, 1), spans=True)
