"""Passes in which nodes write other values, and in which single readers get other values."""

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.circuits.nodes import Node
from analyses.circuits.recording import Hook, Place, run, written_by_heads
from analyses.patching.recorded import LayerCall, Stop
from model_adapters.hooks import first_argument, with_first_argument
from model_adapters.resume_probe import first_positional

if TYPE_CHECKING:
    from analyses.circuits.runs import Runs

Pairs = Collection[tuple[Node, Node]]
"""Edges by their ends, the sender first."""


def place_of(node: Node) -> Place:
    """Where a node's values can be replaced."""
    match node.kind:
        case "embed":
            return "embed", None
        case "head":
            return "z", node.layer
        case "attn":
            return "attn_out", node.layer
        case "added":
            return "resid_pre", node.layer + 1
    return "mlp_out", node.layer


def states(runs: "Runs", nodes: Collection[Node], edges: Pairs) -> Float[Tensor, "item d_model"]:
    """What the metric reads when these nodes write, and over these edges flow, the other values."""
    put = _replacements(runs, nodes)
    if not edges:
        return run(runs.adapter, runs.base.batch, runs.reader, put, runs.depth)
    cut = _Pass(runs, frozenset(nodes), put)
    for sender, receiver in edges:
        cut.senders.setdefault(receiver, set()).add(sender)
        cut.sources.setdefault(place_of(sender), []).append(sender)
    with cut.calls():
        read = run(runs.adapter, runs.base.batch, runs.reader, cut.hooks(), runs.depth)
    ablated = cut.senders.get(runs.readout)
    if ablated:
        rows = torch.arange(len(read))
        read = (
            cut.edited(torch.zeros_like(runs.base.sites["mlp_out", 0]), ablated)[
                rows, runs.base.batch.last
            ].to(read)
            + read
        )
    return read


def _replacements(runs: "Runs", nodes: Collection[Node]) -> dict[Place, Hook]:
    chosen: dict[Place, list[Node]] = {}
    for node in nodes:
        chosen.setdefault(place_of(node), []).append(node)
    return {place: _replacement(runs, place, some) for place, some in chosen.items()}


def _replacement(runs: "Runs", place: Place, nodes: list[Node]) -> Hook:
    if nodes[0].kind == "added":
        layer = nodes[0].layer
        moved = (runs.other.added[layer] - runs.base.added[layer]) * runs.mask[..., None]
        return lambda value: value + moved
    values = runs.other.sites[place]
    where = torch.stack([runs.spans(node) for node in nodes]).any(dim=0)[..., None]
    if nodes[0].kind == "head":
        heads = torch.zeros(values.shape[2], dtype=torch.bool, device=values.device)
        heads[[int(node.part) for node in nodes]] = True
        where = (where & heads)[..., None]
    return lambda value: torch.where(where, values, value)


@dataclass
class _Pass:
    """A pass over edges: what senders write in it, and layers run again for single receivers.

    A block whose receivers read other values is computed again from the stream that they read; of
    what comes out, only theirs is put into the pass.
    """

    runs: "Runs"
    nodes: frozenset[Node]
    """Ablated as a whole."""
    put: Mapping[Place, Hook]
    """What these nodes write instead."""
    senders: dict[Node, set[Node]] = field(default_factory=dict)
    """By receiver, those whose edges to it are ablated."""
    sources: dict[Place, list[Node]] = field(default_factory=dict)
    """Senders of ablated edges, by the place where they write."""
    moved: dict[Node, Float[Tensor, "chosen d_model"]] = field(default_factory=dict)
    """The other values less what the node wrote in this pass, where parts are ablated."""
    streams: dict[int, Float[Tensor, "batch position d_model"]] = field(default_factory=dict)
    """What entered layers."""
    made: dict[int, LayerCall] = field(default_factory=dict)
    wanted: Place | None = None
    """The place that a layer is run again for."""
    caught: list[Tensor] = field(default_factory=list)

    def hooks(self) -> dict[Place, Hook]:
        """At every place where nodes write, and where layers begin; embeddings first."""
        places: list[Place] = [("embed", None)]
        for layer in range(self.runs.depth):
            names = ("resid_pre", "z", "attn_out", "mlp_out")
            places += [(name, layer) for name in names]
        return {place: functools.partial(self._hook, place) for place in places}

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """Note how layers are called, and edit what MLPs read behind attention."""
        with contextlib.ExitStack() as stack:
            for layer in sorted({node.layer for node in self.senders if node.kind != "readout"}):
                module: Any = self.runs.adapter.resid_post.site(layer).envoy._module
                note = functools.partial(self._note, layer)
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
                senders = self.senders.get(Node(layer, "mlp"))
                if senders and layer not in self.runs.parallel:
                    norm = module.get_submodule(self.runs.adapter.layout.inside[layer].mid_norm)
                    edit = functools.partial(self._read_by_mlp, senders)
                    stack.callback(norm.register_forward_pre_hook(edit, with_kwargs=True).remove)
            yield

    def edited(
        self, stream: Float[Tensor, "batch position d_model"], senders: Collection[Node]
    ) -> Float[Tensor, "batch position d_model"]:
        """A stream with the other values of some senders in it."""
        change = torch.stack([self.moved[sender] for sender in sorted(senders)]).sum(dim=0)
        new = stream.clone()
        new[self.runs.mask] += change.to(new)
        return new

    def _hook(self, place: Place, value: Tensor) -> Tensor | None:
        if self.wanted is not None:
            if place == self.wanted:
                self.caught.append(value.detach().clone())
                raise Stop
            return None
        value = self._as_received(place, value)
        if place in self.put:
            changed = self.put[place](value)
            value = value if changed is None else changed
        if place[0] == "resid_pre" and place[1] is not None:
            self.streams[place[1]] = value
        self._note_senders(place, value)
        return value

    def _as_received(self, place: Place, value: Tensor) -> Tensor:
        """What a block writes, each part of it from what that part reads."""
        site, layer = place
        if layer is None:
            return value
        together: dict[frozenset[Node], list[Node]] = {}
        for node, cut in self.senders.items():
            beside = node.kind == "mlp" and layer not in self.runs.parallel
            if node.kind != "readout" and place_of(node) == place and not beside:
                together.setdefault(frozenset(cut), []).append(node)
        for senders, nodes in together.items():
            again = self._again(place, layer, senders)
            if site == "z":
                heads = [int(node.part) for node in nodes]
                value = value.clone()
                value[:, :, heads] = again[:, :, heads]
            else:
                value = again
        return value

    def _again(self, place: Place, layer: int, senders: frozenset[Node]) -> Tensor:
        """A place in a layer that reads other values of some senders."""
        module: Any = self.runs.adapter.resid_post.site(layer).envoy._module
        call, stream = self.made[layer], self.edited(self.streams[layer], senders)
        self.wanted = place
        try:
            # `forward`, so that hooks on the layer do not see this call.
            with contextlib.suppress(Stop):
                module.forward(stream, *call.args, **call.kwargs)
        finally:
            self.wanted = None
        return self.caught.pop()

    def _note(self, layer: int, _: Any, args: Any, kwargs: Any) -> None:
        args, kwargs = first_positional(args, kwargs)
        self.made[layer] = LayerCall(args[1:], kwargs)

    def _read_by_mlp(self, senders: set[Node], _: Any, args: Any, kwargs: Any) -> Any:
        if self.wanted is not None:
            return None
        stream = first_argument(args, kwargs)
        return with_first_argument(args, kwargs, self.edited(stream, senders))

    def _note_senders(self, place: Place, value: Tensor) -> None:
        nodes = self.sources.get(place)
        if not nodes:
            return
        runs, mask = self.runs, self.runs.mask
        if nodes[0].kind == "added":
            layer = nodes[0].layer
            moved = (runs.other.added[layer] - runs.base.added[layer])[mask]
            self.moved[nodes[0]] = torch.zeros_like(moved) if nodes[0] in self.nodes else moved
            return
        moved = runs.other.sites[place][mask] - value[mask]
        if nodes[0].kind == "head":
            layer = nodes[0].layer
            moved = written_by_heads(runs.adapter, layer, moved[None])[0]
            self.moved |= {node: moved[:, int(node.part)] for node in nodes}
        else:
            self.moved |= {node: moved * _of(runs.spans(node), mask) for node in nodes}


def _of(
    some: Bool[Tensor, "batch position"], mask: Bool[Tensor, "batch position"]
) -> Bool[Tensor, "chosen one"]:
    return some[mask][:, None]
