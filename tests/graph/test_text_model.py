"""Graphs on a text-only model, whose generate computes logits of the last position only."""

import pytest
import torch
from torch import Tensor

import model_adapters
import regap_interp as ri
from model_adapters import Adapter
from tests.adapters.conftest import build_text_model


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return model_adapters.load(build_text_model())


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generated(adapter: Adapter, inputs: dict[str, Tensor]) -> Tensor:
    tokens: Tensor = adapter.module.generate(**inputs, max_new_tokens=3, do_sample=False)
    return tokens[:, 5:]


def test_logits_are_edited_and_read_while_generating(
    adapter: Adapter, inputs: dict[str, Tensor]
) -> None:
    favour = torch.zeros(120, dtype=torch.float64)
    favour[42] = 1e4
    graph = ri.Graph(
        ri.add("logits", None, favour, at="last"), outputs={"logits": ri.read("logits")}
    )
    with torch.no_grad():
        bare = adapter.module(**inputs).logits[:, -1]
    with graph.on(adapter) as steered:
        tokens = generated(adapter, inputs)
    assert tokens[:, 0].tolist() == [42, 42]
    torch.testing.assert_close(steered.last["logits"], bare + favour.float())


def test_a_probe_of_a_later_layer_equals_passes_from_the_start(
    adapter: Adapter, inputs: dict[str, Tensor]
) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = ri.read("resid_post", 2, under=[]).project(vectors[0])
    batch = adapter.describe(**inputs)
    cut = float(ri.Graph(outputs={"v": value}).run(adapter, batch)["v"].mean())
    edit = ri.add("resid_post", 0, 5 * vectors[1], strength=ri.select(value > cut, 1, 0))
    graph = ri.Graph(edit)
    with graph.on(adapter) as steered:
        resumed = generated(adapter, inputs)
        assert sorted(steered.last.strengths[edit].tolist()) == [0, 1]
        assert sorted(steered.last.recomputed.tolist()) == [0, 2]
    with graph.on(adapter, resume=False):
        assert torch.equal(generated(adapter, inputs), resumed)
