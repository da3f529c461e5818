"""What nodes are worth in a running pass, row by row."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model_adapters import Adapter
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import (
    ARITHMETIC,
    COMPARISONS,
    Arithmetic,
    Compare,
    Constant,
    IsModality,
    Lens,
    Logic,
    Mean,
    Node,
    Number,
    Project,
    Read,
    Select,
)


@dataclass(frozen=True, eq=False)
class Value:
    """A node's value: `[batch, ...]`, or `[batch, position, ...]` where `mask` is True."""

    tensor: Tensor
    mask: Bool[Tensor, "batch position"] | None = None


@dataclass(eq=False)
class Values:
    """The values of one batch's nodes. Reads are put in as the pass reaches them."""

    adapter: Adapter
    modalities: tuple[str, ...]
    reads: dict[Read, Value] = field(default_factory=dict)
    guess: bool = False
    """What gates on unknown reads count as."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.modalities)

    def of(self, node: Node, unknown: "frozenset[Read]" = frozenset()) -> Value:
        """The value of a node.

        What rests on reads in `unknown` is NaN; gates on them are `guess`.
        """
        return self._of(node, unknown, {})

    def numbers(
        self, node: Node, unknown: "frozenset[Read]" = frozenset()
    ) -> Float[Tensor, "batch"]:
        """The value of a node that is a number for each row, float64 on the CPU."""
        if isinstance(node, Number):
            return torch.full((len(self),), node.value, dtype=torch.float64)
        found = self.of(node, unknown).tensor.detach().to("cpu", torch.float64)
        return found.expand(len(self)).clone() if found.numel() == 1 else found

    def _of(self, node: Node, unknown: "frozenset[Read]", known: dict[Node, Value]) -> Value:
        if node not in known:
            known[node] = self._computed(node, unknown, known)
        return known[node]

    def _computed(self, node: Node, unknown: "frozenset[Read]", known: dict[Node, Value]) -> Value:
        value = functools.partial(self._of, unknown=unknown, known=known)
        if (
            unknown
            and not isinstance(node, Logic | Select | Arithmetic)
            and not unknown.isdisjoint(reads_below(node))
        ):
            if isinstance(node, Compare):
                return Value(torch.full((len(self),), self.guess))
            return Value(torch.full((len(self),), torch.nan, dtype=torch.float64))
        match node:
            case Read():
                return self.reads[node]
            case Number():
                return Value(torch.full((len(self),), node.value, dtype=torch.float64))
            case Constant():
                # With a row axis, so that it never meets a number for each row as an equal.
                return Value(node.value[None] if node.value.ndim == 1 else node.value)
            case IsModality():
                return Value(torch.tensor([one == node.modality for one in self.modalities]))
            case Mean():
                return _mean(value(node.of))
            case Project():
                return _project(node, value(node.of))
            case Lens():
                inner = value(node.of)
                return Value(self.adapter.unembed(inner.tensor, node.tokens), inner.mask)
            case Arithmetic():
                return _combined(ARITHMETIC[node.op], value(node.left), value(node.right))
            case Compare():
                return _combined(COMPARISONS[node.op], value(node.left), value(node.right))
            case Logic():
                parts = [value(one).tensor.cpu() for one in node.of]
                if node.op == "not":
                    return Value(~parts[0])
                joined = torch.stack(parts)
                return Value(joined.all(0) if node.op == "and" else joined.any(0))
            case Select():
                return _selected(value(node.gate), value(node.then), value(node.otherwise))
        raise AssertionError(f"no such node: {type(node).__name__}")


def exact(states: Tensor) -> Tensor:
    """`states` in float64, or in float32 on devices that have no more."""
    return states.to(torch.float32 if states.device.type == "mps" else torch.float64)


def reads_below(node: Node) -> frozenset[Read]:
    """Every read that a node rests on, those of other passes' edits left out."""
    if isinstance(node, Read):
        return frozenset((node,))
    return frozenset().union(*(reads_below(one) for one in node.inputs()))


def _mean(value: Value) -> Value:
    if value.mask is None:
        return Value(exact(value.tensor).mean(dim=1))
    mask = value.mask.to(value.tensor.device)
    inside = mask.reshape(*mask.shape, *[1] * (value.tensor.ndim - 2))
    total = torch.where(inside, exact(value.tensor), 0.0).sum(dim=1)
    # No position at all: 0 / 0 is NaN, which no gate takes for true.
    return Value(total / inside.sum(dim=1))


def _project(node: Project, value: Value) -> Value:
    states = exact(value.tensor)
    vector = exact(node.vector.value.to(states.device))
    if node.centre is not None:
        states = states - exact(node.centre.value.to(states.device))
    coordinate = states @ (vector / vector.norm())
    return Value(coordinate / vector.norm() if node.unit == "norm" else coordinate, value.mask)


def _combined(function: Callable[[Tensor, Tensor], Tensor], left: Value, right: Value) -> Value:
    device = right.tensor.device if left.tensor.device.type == "cpu" else left.tensor.device
    a, b = exact(left.tensor.to(device)), exact(right.tensor.to(device))
    return Value(function(_aligned(a, b), _aligned(b, a)), _shared_mask(left, right))


def _shared_mask(left: Value, right: Value) -> Tensor | None:
    if left.mask is None or right.mask is None:
        return left.mask if right.mask is None else right.mask
    if not torch.equal(left.mask, right.mask):
        raise GraphError(
            "values of different positions are combined position by position; take the mean of "
            "each first"
        )
    return left.mask


def _aligned(one: Tensor, other: Tensor) -> Tensor:
    """`one` with the axes that `other` has more: positions, features, or both."""
    if one.ndim == 1 and other.ndim > 1:
        return one.reshape(len(one), *[1] * (other.ndim - 1))
    return one.unsqueeze(1) if one.ndim < other.ndim else one


def _selected(gate: Value, then: Value, otherwise: Value) -> Value:
    chosen = gate.tensor.cpu()
    a, b = exact(then.tensor.cpu()), exact(otherwise.tensor.cpu())
    a, b = _aligned(a, b), _aligned(b, a)
    return Value(torch.where(_aligned(chosen, a), a, b), _shared_mask(then, otherwise))
