"""Choosing, comparing, drawing and keeping circuits; what is refused."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from analyses.circuits import Circuit, Node, Runs, Scores, compare, curves, record_runs, score_edges
from analyses.circuits.checking import draw
from analyses.circuits.layout import place_nodes
from analyses.circuits.nodes import named
from analyses.patching import LogitDifference
from model_adapters import Adapter

METRIC = LogitDifference(right=7, wrong=20)


def test_top_and_threshold_take_the_largest(scores: Scores) -> None:
    means = scores.of_edges.mean(dim=0)
    largest = means.abs().sort(descending=True).values[:12]
    circuit = scores.top(12)
    found = [abs(edge.contribution) for edge in circuit.edges]
    assert found == pytest.approx(largest.tolist())
    again = scores.threshold(float(largest[11]) * 0.9999)
    assert {edge.ends for edge in circuit.edges} <= {edge.ends for edge in again.edges}
    assert all(edge.contribution > 0 for edge in scores.top(5, positive=True).edges)
    assert all(edge.contribution < 0 for edge in scores.top(5, positive=False).edges)
    assert scores.top(12).nodes.keys() >= {edge.sender for edge in circuit.edges}


def test_scores_as_a_table(scores: Scores) -> None:
    table = scores.to_frame()
    assert len(table) == len(scores.senders) and "readout" in set(table["receiver"])
    largest = table.loc[table["contribution"].abs().idxmax()]
    edge = scores.top(1).edges[0]
    assert (largest["sender"], largest["receiver"]) == (str(edge.sender), str(edge.receiver))
    assert largest["low"] <= edge.contribution <= largest["high"]


def test_greedy_circuits_lead_to_the_readout(scores: Scores) -> None:
    reached = {scores.readout}
    for edge in scores.greedy(30).edges:
        assert edge.receiver in reached
        reached.add(edge.sender)
    smaller = {edge.ends for edge in scores.greedy(10).edges}
    assert smaller < {edge.ends for edge in scores.greedy(30).edges}


@pytest.fixture(scope="module")
def checked(runs: Runs) -> Scores:
    """With some edges really ablated."""
    return score_edges(runs, check=6, seed=2)


def test_scores_are_checked_by_real_ablation(runs: Runs, checked: Scores) -> None:
    check = checked.check
    assert check is not None and len(set(check.edges)) == check.agreement.n == 6
    bare = runs.ablated()
    for place, ends in enumerate(check.edges):
        lost = bare - runs.ablated(edges=[ends])
        torch.testing.assert_close(check.exact[:, place], lost, atol=1e-6, rtol=0)
        edge = runs.edges.index(ends)
        assert torch.equal(check.estimated[:, place], checked.of_edges[:, edge])
    whole = float((bare - runs.ablated(runs.nodes)).mean().abs())
    furthest = float((check.exact.mean(dim=0) - check.estimated.mean(dim=0)).abs().max())
    assert check.agreement.largest == pytest.approx(furthest / whole)
    order = checked.of_edges.mean(dim=0).abs().argsort(descending=True).tolist()
    large = {runs.edges[i] for i in order[: round(0.05 * len(order))]}
    assert len(large & set(check.edges)) == 3
    again = score_edges(runs, check=6, seed=2).check
    assert again is not None and again.edges == check.edges
    assert list(check.to_frame()) == ["sender", "receiver", "estimated", "exact"]
    assert "6 edges really ablated" in repr(checked) and "Spearman" in check.view().caption


def test_agreement_stays_with_the_circuit(checked: Scores, tmp_path: Path) -> None:
    circuit = checked.greedy(5)
    assert checked.check is not None and circuit.agreement == checked.check.agreement
    assert "6 edges really ablated" in circuit.view().caption
    assert Circuit.load(circuit.save(tmp_path / "circuit.json")).agreement == circuit.agreement
    assert draw(torch.arange(5.0), 9, 0) == [0, 1, 2, 3, 4]


def test_files_come_back(scores: Scores, tmp_path: Path) -> None:
    circuit = scores.greedy(60)
    back = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert (back.nodes, back.edges, repr(back)) == (circuit.nodes, circuit.edges, repr(circuit))
    for suffix in (".png", ".svg", ".html", ".csv"):
        assert circuit.save(tmp_path / f"circuit{suffix}").stat().st_size > 500
    with pytest.raises(ValueError, match="no view becomes"):
        circuit.save(tmp_path / "circuit.gif")
    with pytest.raises(ValueError, match="holds no circuit"):
        (tmp_path / "other.json").write_text("{}")
        Circuit.load(tmp_path / "other.json")
    plain = json.loads((tmp_path / "circuit.json").read_text())
    first, *rest = plain["edges"]
    for damage in (
        {"edges": [["head x", *first[1:]], *rest]},
        {"edges": [["head 99.0", *first[1:]], *rest]},
        {"edges": [[first[1], first[0], first[2]], *rest]},
        {"edges": [first[:2]]},
        {"nodes": [["head 99.0", 1.0], *plain["nodes"]]},
        {"n": "many"},
        {"metric": 3},
        {"n_layers": float("inf")},
        {"agreement": [1]},
    ):
        (tmp_path / "damaged.json").write_text(json.dumps({**plain, **damage}))
        with pytest.raises(ValueError, match="is damaged"):
            Circuit.load(tmp_path / "damaged.json")


def test_graphml(scores: Scores, tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx")
    circuit = scores.greedy(20)
    graph = networkx.read_graphml(circuit.save(tmp_path / "circuit.graphml"))
    assert len(graph.edges) == 20 and "readout" in graph
    edge = circuit.edges[0]
    data = graph.edges[str(edge.sender), str(edge.receiver)]
    assert data["contribution"] == pytest.approx(edge.contribution)


HOSTILE = "</script><img src=x onerror=alert(1)>&\"'$x^$ \u202e \x00\x08 \ud800 " + "A" * 300


def test_hostile_names_are_text(scores: Scores, tmp_path: Path) -> None:
    """Of a metric, a model or a panel; files stay well-formed, and JSON keeps every sign."""
    networkx = pytest.importorskip("networkx")
    circuit = dataclasses.replace(scores.greedy(3), metric=HOSTILE, model=HOSTILE)
    assert Circuit.load(circuit.save(tmp_path / "one.json")).metric == HOSTILE
    graph = networkx.read_graphml(circuit.save(tmp_path / "one.graphml")).graph
    assert graph["metric"].startswith("</script><img") and "\u27e8U+0000\u27e9" in graph["metric"]
    both = compare(circuit, circuit, names=(HOSTILE, "b")).view(title=HOSTILE)
    pages = [circuit._repr_mimebundle_()["text/html"], circuit.to_frame().to_html()]
    for view, name in ((circuit, "one"), (both, "two")):
        pages.append(view.save(tmp_path / f"{name}.html").read_text())
        drawing = view.save(tmp_path / f"{name}.svg")
        ElementTree.parse(drawing)
        pages.append(drawing.read_text())
    for page in pages:
        assert "<script" not in page and "<img src=x" not in page
    with pytest.raises(ValueError, match="no embeddings are"):
        Node(-1, "embed", HOSTILE)


def test_names_of_metrics_are_words(pair_of: Any, random_organism: Adapter) -> None:
    right, wrong = (
        random_organism.tokenizer.convert_tokens_to_ids(word) for word in ("sorry", "gladly")
    )
    metric = LogitDifference(right, wrong)
    runs = record_runs(random_organism, *pair_of(), metric=metric, positions=["last"])
    found = score_edges(runs, check=2)
    circuit, words = found.greedy(3), "logit difference sorry - gladly"
    curved = curves(runs, [circuit], controls=0, resamples=5)
    assert found.metric == circuit.metric == words
    assert found.check is not None
    for view in (found.check.view(), curved.view(), circuit.view()):
        assert words in view.caption + view._summary()
    assert "seed 0" in curved.view().caption and "n = 2" in curved.view().caption


def test_empty_circuits_have_pictures(scores: Scores, tmp_path: Path) -> None:
    nothing = scores.threshold(float("inf"))
    assert not nothing.edges and nothing.compare(nothing).overlap == 1
    assert nothing.save(tmp_path / "empty.png").stat().st_size > 500
    assert Circuit.load(nothing.save(tmp_path / "empty.json")).edges == ()


def test_edges_without_a_score_have_no_sign(scores: Scores) -> None:
    values = torch.zeros_like(scores.of_edges)
    values[:, 4], values[:, 9] = -1.0, 2.0
    some = dataclasses.replace(scores, of_edges=values)
    for positive, contribution in ((True, 2.0), (False, -1.0)):
        assert [e.contribution for e in some.top(10, positive=positive).edges] == [contribution]


def test_graphml_says_what_is_missing(
    scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match="pip install networkx"):
        scores.top(3).save(tmp_path / "circuit.graphml")


def test_comparison(scores: Scores) -> None:
    first, second = scores.top(20), scores.greedy(20)
    found = compare(first, second, names=("top", "greedy"))
    assert len(found.shared) + len(found.lost) == 20
    assert len(found.shared) + len(found.new) == 20
    assert first.compare(first).overlap == 1 and not first.compare(first).new
    frame = found.to_frame()
    assert list(frame["circuit"]) == ["top"] * 20 + ["greedy"] * 20
    assert int(frame["shared"].sum()) == 2 * len(found.shared)
    assert f"{len(found.lost)} only top" in repr(found)
    for other in ({"metric": "another"}, {"model": "another"}, {"readout": Node(7, "readout")}):
        with pytest.raises(ValueError, match="one metric in one model"):
            first.compare(dataclasses.replace(second, **other))


def test_nodes_have_places_of_their_own(scores: Scores) -> None:
    circuit = scores.greedy(60)
    places = place_nodes(list(circuit.nodes), circuit.readout, [e.ends for e in circuit.edges])
    assert len(set(places.at.values())) == len(circuit.nodes) + 1
    for edge in circuit.edges:
        assert places.at[edge.sender][1] < places.at[edge.receiver][1]
    heights = [places.at[node][1] for node in sorted(circuit.nodes) if node.kind == "mlp"]
    assert heights == sorted(heights)


def test_views_hold_no_script(runs: Runs, scores: Scores) -> None:
    circuit = dataclasses.replace(scores.greedy(8), metric="<script>alert(1)</script>")
    shown = circuit._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html", "image/png"}
    assert "<script" not in shown["text/html"]
    done: list[tuple[int, int]] = []
    found = curves(
        runs,
        [scores.greedy(4), scores.greedy(8)],
        controls=1,
        resamples=20,
        progress=lambda *passes: done.append(passes),
    )
    assert done == [(2 * (i + 1), 2 * 8) for i in range(8)]
    assert len(found.plot().axes) == 2
    assert found.to_frame().shape == (2, 14)


def test_means_take_the_place_of_parts(random_organism: Adapter, pair_of: Any) -> None:
    batch, reference = pair_of()[0], pair_of(3)[1]
    runs = record_runs(random_organism, batch, reference, metric=METRIC, fill="mean")
    with random_organism.trace(reference):
        out = random_organism.mlp_out[1].save()
    mean = out[reference.prompt_mask].mean(dim=0)
    handle = random_organism.hook("mlp_out", 1, lambda value: mean.expand_as(value))
    try:
        logits = random_organism(batch).logits[:, -1].double()
    finally:
        handle.remove()
    wanted = logits[:, 7] - logits[:, 20]
    torch.testing.assert_close(runs.ablated([Node(1, "mlp")]), wanted, atol=1e-4, rtol=0)


def test_names() -> None:
    for node in (
        Node(3, "head", 1),
        Node(-1, "embed", "image"),
        Node(2, "mlp"),
        Node(4, "readout"),
    ):
        assert named(str(node), 4) == node
    with pytest.raises(ValueError, match="no node is called"):
        named("nose 3", 4)


@pytest.mark.usefixtures("as_users_run_it")
def test_refusals(random_organism: Adapter, runs: Runs, scores: Scores, pair_of: Any) -> None:
    batch, reference = pair_of()
    with pytest.raises(ValueError, match="row i belongs to row i"):
        record_runs(random_organism, batch, pair_of(1)[0], metric=METRIC)
    with pytest.raises(ValueError, match="fill is"):
        record_runs(random_organism, batch, reference, metric=METRIC, fill="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="overlap"):
        record_runs(random_organism, batch, reference, metric=METRIC, positions=["last", -1])
    with pytest.raises(ValueError, match="no head 99"):
        runs.ablated([Node(99, "head", 0)])
    with pytest.raises(ValueError, match="steps is -1"):
        score_edges(runs, steps=-1)
    with pytest.raises(ValueError, match="check is -1"):
        score_edges(runs, check=-1)
    with pytest.raises(ValueError, match="by is 'heads'"):
        curves(runs, [scores.greedy(2)], by="heads")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one edge"):
        scores.top(0)
    same = record_runs(random_organism, batch, batch, metric=METRIC)
    with pytest.raises(ValueError, match="nothing that a circuit could explain"):
        curves(same, [scores.greedy(2)])
