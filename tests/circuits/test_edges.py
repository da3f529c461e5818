"""Edges that are really ablated: identities, and the same by hand with PyTorch's own hooks."""

import contextlib
import random
from typing import Any

import pytest
import torch

import model_adapters
from analyses.circuits import Runs, record_runs
from analyses.circuits.nodes import Node
from analyses.patching import LogitDifference
from model_adapters.tiny import builders
from tests.circuits.conftest import METRIC, encoded, media_samples, runs_of

FAMILIES = ("qwen3_vl", "gemma3", "granite", "olmo2", "mixtral", "qwen3_5", "qwen2_audio")
"""With features added between layers, norms and multipliers behind attention; no norm before
blocks, experts, linear attention, sounds."""


@pytest.fixture(scope="module")
def exact() -> Runs:
    """Of the random organism in float64, parts ablated at the picture and the last positions."""
    from model_adapters.organism.build import build_model, build_processor, build_tokenizer

    model = build_model(build_tokenizer(), seed=0).eval().double()
    adapter = model_adapters.load(model, processor=build_processor())
    one, other = (
        encoded(adapter, media_samples("image", 2, seed=0, level=level)) for level in (0.8, 0.0)
    )
    return record_runs(adapter, one, other, metric=METRIC, positions=["image", -3, -2, -1])


def outgoing(runs: Runs, node: Node) -> list[tuple[Node, Node]]:
    return [ends for ends in runs.edges if ends[0] == node]


def edges_make_nodes(runs: Runs, nodes: list[Node], atol: float) -> None:
    """All edges that leave a node are the node; all edges are everything; none are none."""
    bare = runs.ablated()
    torch.testing.assert_close(runs.ablated(edges=[]), bare, atol=0, rtol=0)
    for node in nodes:
        by_edges = runs.ablated(edges=outgoing(runs, node))
        torch.testing.assert_close(by_edges, runs.ablated([node]), atol=atol, rtol=0)
        # What is ablated already does not change any more.
        both = runs.ablated([node], edges=outgoing(runs, node)[:3])
        torch.testing.assert_close(both, by_edges, atol=atol, rtol=0)
    every = runs.ablated(edges=runs.edges)
    torch.testing.assert_close(every, runs.ablated(runs.nodes), atol=atol, rtol=0)
    assert float((every - bare).abs().min()) > 100 * atol


def test_edges_make_nodes(exact: Runs) -> None:
    chosen = [Node(-1, "embed", "image"), Node(2, "head", 3), Node(4, "mlp")]
    edges_make_nodes(exact, chosen, 1e-10)
    some = random.Random(0).sample(exact.nodes, 12)
    together = [ends for node in some for ends in outgoing(exact, node)]
    torch.testing.assert_close(
        exact.ablated(edges=together), exact.ablated(some), atol=1e-10, rtol=0
    )


@contextlib.contextmanager
def hooked(module: Any, hook: Any, *, before: bool = False) -> Any:
    add = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = add(hook)
    try:
        yield
    finally:
        handle.remove()


def first_of(value: Any) -> torch.Tensor:
    found: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return found


def by_hand(runs: Runs, sender: int, receiver: Node) -> torch.Tensor:
    """The edge from the MLP of a layer to a head or an MLP, with hooks on modules of Qwen."""
    layers: Any = runs.adapter.module.get_submodule(runs.adapter.layout.layers)
    inputs, block = runs.base.batch.inputs, layers[receiver.layer]
    theirs = runs.other.sites["mlp_out", sender]
    own: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []

    def edit(_: Any, args: Any) -> Any:
        return (args[0] + (theirs - own[-1]) * runs.mask[..., None],)

    norm = {"head": block.input_layernorm, "mlp": block.post_attention_layernorm}[receiver.kind]
    out = {"head": block.self_attn.o_proj, "mlp": block.mlp}[receiver.kind]
    with hooked(layers[sender].mlp, lambda _, args, output: own.append(first_of(output).clone())):
        with hooked(norm, edit, before=True):
            if receiver.kind == "mlp":
                logits = runs.adapter.module(**inputs, use_cache=False).logits
            else:
                with hooked(out, lambda _, args: taken.append(args[0].clone()), before=True):
                    runs.adapter.module(**inputs, use_cache=False)
        if receiver.kind == "head":
            width = runs.adapter.d_head
            mine = slice(int(receiver.part) * width, (int(receiver.part) + 1) * width)

            def put(_: Any, args: Any) -> Any:
                new = args[0].clone()
                new[..., mine] = taken[0][..., mine]
                return (new,)

            with hooked(out, put, before=True):
                logits = runs.adapter.module(**inputs, use_cache=False).logits
    last = logits[torch.arange(len(logits)), runs.base.batch.last].double()
    return last[:, METRIC.right] - last[:, METRIC.wrong]


@pytest.mark.parametrize("receiver", [Node(3, "head", 1), Node(5, "mlp"), Node(2, "mlp")])
@torch.no_grad()
def test_an_edge_by_hand(exact: Runs, receiver: Node) -> None:
    found = exact.ablated(edges=[(Node(1, "mlp"), receiver)])
    torch.testing.assert_close(found, by_hand(exact, 1, receiver), atol=1e-10, rtol=0)
    assert float((found - exact.ablated()).abs().min()) > 1e-8
    assert float((found - exact.ablated([Node(1, "mlp")])).abs().min()) > 1e-8


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    runs = record_runs(adapter, *runs_of(adapter), metric=LogitDifference(right=3, wrong=7))
    chosen = [next(node for node in runs.nodes if node.kind == kind) for kind in kinds(runs)]
    edges_make_nodes(runs, chosen, 2e-5)


def kinds(runs: Runs) -> list[str]:
    return sorted({node.kind for node in runs.nodes})


@pytest.mark.usefixtures("as_users_run_it")
def test_refusals(exact: Runs) -> None:
    with pytest.raises(ValueError, match=r"no edge from mlp 3 to head 3\.0"):
        exact.ablated(edges=[(Node(3, "mlp"), Node(3, "head", 0))])


def test_an_interrupted_pass_leaves_no_hooks(exact: Runs) -> None:
    layers = exact.adapter.module.get_submodule(exact.adapter.layout.layers)

    def hooks() -> int:
        return sum(
            len(part._forward_hooks) + len(part._forward_pre_hooks) for part in layers.modules()
        )

    def interrupt(value: torch.Tensor) -> None:
        raise KeyboardInterrupt

    before = hooks()
    handle = exact.adapter.hook("mlp_out", 4, interrupt)
    with pytest.raises(KeyboardInterrupt):
        exact.ablated(edges=exact.edges)
    handle.remove()
    assert hooks() == before
