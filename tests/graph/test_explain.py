"""The plan in words, with the costs that the engine then has."""

from typing import Any

import pytest
import torch
from torch import Tensor

import regap_interp as ri
from model_adapters import Adapter, Batch
from tests.graph.test_executors import paired, steer


def test_one_pass_costs_nothing_more(random_organism: Adapter, vectors: Tensor) -> None:
    plan = steer(vectors).explain(random_organism)
    assert (plan.least, plan.most) == (0, 0)
    assert "nothing runs twice" in str(plan)


@pytest.mark.parametrize(("threshold", "end"), [(1e9, "least"), (-1e9, "most")])
def test_costs_are_those_of_the_run(
    random_organism: Adapter, left: Batch, vectors: Tensor, threshold: float, end: str
) -> None:
    graph = paired(vectors, threshold)
    plan = graph.explain(random_organism, left)
    measured = graph.run(random_organism, left, logits=True).extra_prefill.mean()
    assert getattr(plan, end) == pytest.approx(float(measured))
    assert plan.resumed and "layers 5 to 7 run again" in str(plan)


def test_text_rows_are_told_to_cost_nothing(random_organism: Adapter, vectors: Tensor) -> None:
    told = str(paired(vectors).explain(random_organism))
    assert "text rows: 0% of a prefill" in told
    assert "image rows: 25% to 50% of a prefill" in told


def test_a_value_read_after_the_last_layer_needs_whole_passes(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    answer = ri.lens(ri.read("final_norm", under=[]), [4]).project(torch.ones(1))
    graph = ri.Graph(ri.add("resid_post", 4, vectors[0], strength=ri.select(answer > 0, 1, 0.5)))
    plan = graph.explain(random_organism, left)
    assert not plan.resumed and plan.least == plan.most == 1
    assert "after the last layer" in str(plan)
    run = graph.run(random_organism, left, logits=True)
    assert run.recomputed.tolist() == [12] * len(left)


def test_doses_are_lengths_of_the_edit_over_the_state(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    graph = ri.Graph(ri.add("resid_post", 4, vectors[0], strength=0.5, at="last"))
    (dose,) = graph.explain(random_organism, left).doses or ()
    states = ri.Graph(outputs={"h": ri.read("resid_post", 4)}).run(random_organism, left)["h"]
    expected = (0.5 * vectors[0].norm()) / states.double().norm(dim=1)
    assert dose.positions == len(left)
    assert dose.mean == pytest.approx(float(expected.mean()), rel=1e-4)
    assert dose.largest == pytest.approx(float(expected.max()), rel=1e-4)


def test_hostile_names_are_escaped(random_organism: Adapter, monkeypatch: Any) -> None:
    monkeypatch.setattr(random_organism, "model_id", "<script>alert(1)</script>")
    html = steer(torch.ones(1, 128)).explain(random_organism)._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html
