"""The graph of a model written out, each receiver computed by itself, in float64: edges that are
ablated and scores of edges are those of `analyses.circuits`, for padded batches too."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import model_adapters
from analyses.circuits import Runs, direct_attribution, record_runs, score_edges
from analyses.circuits.nodes import Node
from analyses.patching import LogitDifference
from model_adapters import Adapter, Batch
from tests.circuits.test_identities import some_direction

METRIC = LogitDifference(right=7, wrong=20)
LENGTHS, WIDTH = (9, 6), 9
SIZES: dict[str, Any] = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=None,
    max_position_embeddings=64,
)
MODELS: dict[str, Callable[[], Any]] = {
    "biases behind heads": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attention_bias=True)
    ),
    "norms with bias": lambda: transformers.Starcoder2ForCausalLM(
        transformers.Starcoder2Config(**SIZES)
    ),
    "side by side": lambda: transformers.Cohere2ForCausalLM(
        transformers.Cohere2Config(**SIZES, head_dim=8, sliding_window=4)
    ),
}
Values = Mapping[Node, Tensor]


class Written:
    """A model's blocks, called one by one with what the model called them with."""

    def __init__(self, model: Any, batch: Batch, nodes: tuple[Node, ...]) -> None:
        self.model, self.batch, self.nodes = model, batch, nodes
        self.layers = model.model.layers
        self.parallel = [i for i in range(3) if "Cohere" in type(model).__name__]
        self.calls: list[dict[str, Any]] = []
        self.embedded: list[Tensor] = []
        handles = [
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: self.calls.append(kwargs), with_kwargs=True
            )
            for layer in self.layers
        ]
        handles.append(
            self.layers[0].register_forward_pre_hook(
                lambda _, args: self.embedded.append(args[0].clone())
            )
        )
        model(**batch.inputs, use_cache=False)
        for handle in handles:
            handle.remove()

    def writes(self, node: Node, stream: Tensor) -> Tensor:
        layer = self.layers[node.layer]
        if node.kind == "mlp":
            norm = "input_layernorm" if self.parallel else "post_attention_layernorm"
            found: Tensor = layer.mlp(getattr(layer, norm)(stream))
            return found
        out, seen = layer.self_attn.o_proj, list[Tensor]()
        handle = out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        given = {**self.calls[node.layer], "hidden_states": layer.input_layernorm(stream)}
        layer.self_attn(**given)
        handle.remove()
        mine = slice(8 * int(node.part), 8 * int(node.part) + 8)
        return seen[0][..., mine] @ out.weight[:, mine].T

    def read(self, receiver: Node, wrote: Values, flow: Callable[..., Tensor]) -> Tensor:
        """The stream in front of a node: what others wrote, and the biases behind heads."""
        stream = torch.zeros_like(self.embedded[0])
        for sender, value in wrote.items():
            if sender.reaches(receiver, self.parallel):
                stream = stream + flow(sender, receiver, value)
        behind = receiver.layer + (receiver.kind == "mlp" and not self.parallel)
        for layer in self.layers[:behind]:
            if layer.self_attn.o_proj.bias is not None:
                stream = stream + layer.self_attn.o_proj.bias
        return stream

    def run(self, flow: Callable[..., Tensor] = lambda s, r, v: v) -> tuple[Values, Tensor]:
        """What every node writes, and the metric."""
        wrote: dict[Node, Tensor] = {}
        for node in self.nodes:
            if node.kind == "embed":
                wrote[node] = self.embedded[0]
            else:
                wrote[node] = self.writes(node, self.read(node, wrote, flow))
        last = self.read(Node(3, "readout"), wrote, flow)[torch.arange(2), self.batch.last]
        logits = self.model.lm_head(self.model.model.norm(last))
        logits = logits * getattr(self.model, "logit_scale", 1)
        return wrote, logits[:, METRIC.right] - logits[:, METRIC.wrong]


def prompts(adapter: Adapter, seed: int, left: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(2, WIDTH, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        here = slice(WIDTH - length, WIDTH) if left else slice(0, length)
        ids[row, here] = torch.randint(1, 60, (length,), generator=draw)
        mask[row, here] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param]()
    for parameter in made.parameters():
        parameter.data = torch.randn_like(parameter) * 0.25
    return made.double().eval()


@pytest.mark.parametrize("left", [True, False])
def test_edges_and_scores(model: Any, left: bool) -> None:
    adapter = model_adapters.load(model)
    ours, theirs = (adapter.describe(**prompts(adapter, seed, left)) for seed in (1, 2))
    runs = record_runs(adapter, ours, theirs, metric=METRIC, positions=[1, 3, "last"])
    assert len(runs.nodes) == 1 + 3 * 5
    with torch.no_grad():
        mine = Written(model, ours, runs.nodes)
        other, _ = Written(model, theirs, runs.nodes).run()
        _, bare = mine.run()
    torch.testing.assert_close(runs.ablated(), bare, atol=1e-12, rtol=0)
    mask = runs.mask[..., None]
    assert int(mask.sum()) == 6

    draw = random.Random(0)
    for count in (1, 1, 5, 40, len(runs.edges) - 5):
        cut = set(draw.sample(runs.edges, count))

        def ablated(sender: Node, receiver: Node, value: Tensor, cut: Any = cut) -> Tensor:
            new = torch.where(mask, other[sender], value)
            return new if (sender, receiver) in cut else value

        with torch.no_grad():
            _, wanted = mine.run(ablated)
        torch.testing.assert_close(runs.ablated(edges=cut), wanted, atol=1e-12, rtol=0)
        assert float((wanted - bare).abs().max()) > 1e-6

    shares = torch.zeros(len(runs.edges), 2, dtype=torch.float64, requires_grad=True)
    places = {edge: place for place, edge in enumerate(runs.edges)}
    base, _ = mine.run()

    def moved(sender: Node, receiver: Node, value: Tensor) -> Tensor:
        share = shares[places[sender, receiver]][:, None, None]
        return value + share * ((other[sender] - base[sender]) * mask).detach()

    _, value = mine.run(moved)
    (gradient,) = torch.autograd.grad(value.sum(), shares)
    # Norms of some models compute in float32.
    torch.testing.assert_close(score_edges(runs).of_edges, -gradient.T, atol=1e-7, rtol=0)


def test_rows_do_not_meet(model: Any) -> None:
    """Every request of a padded batch has the numbers that it has alone."""
    adapter = model_adapters.load(model)

    def made(rows: slice, across: slice) -> Runs:
        some = [
            {name: value[rows, across] for name, value in prompts(adapter, seed, False).items()}
            for seed in (1, 2)
        ]
        return record_runs(adapter, *(adapter.describe(**one) for one in some), metric=METRIC)

    together = made(slice(None), slice(None))
    edges = random.Random(0).sample(together.edges, 40)
    scores = score_edges(together, steps=2)
    for row, length in enumerate(LENGTHS):
        alone = made(slice(row, row + 1), slice(0, length))
        for got, wanted in (
            (together.ablated(edges=edges), alone.ablated(edges=edges)),
            (together.ablated(together.nodes[2:9]), alone.ablated(alone.nodes[2:9])),
            (scores.of_edges, score_edges(alone, steps=2).of_edges),
            (scores.of_nodes, score_edges(alone, steps=2).of_nodes),
        ):
            torch.testing.assert_close(got[row : row + 1], wanted, atol=1e-7, rtol=0)


def test_coordinates_add_up(model: Any) -> None:
    """With the biases behind heads, which no node writes."""
    adapter = model_adapters.load(model)
    batch = adapter.describe(**prompts(adapter, 1, True))
    found = direct_attribution(adapter, batch, some_direction(adapter, 2))
    together = found.of_nodes.sum(dim=1) + found.constant
    torch.testing.assert_close(together, found.total, atol=1e-12, rtol=0)
