"""What kind of value every node has, found without running anything."""

import functools
from dataclasses import dataclass
from typing import Literal

from model_adapters import Adapter
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import (
    HEAD_SITES,
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
    Steps,
)
from regap_interp.graph.places import label

Kind = Literal["number", "gate", "vector"]


@dataclass(frozen=True)
class Shape:
    """Kind of a value, apart from its rows."""

    kind: Kind
    several: bool = False
    """Whether it has an axis of positions."""
    feature: tuple[int, ...] = ()
    """Sizes after row and position; empty for numbers and gates."""

    def __str__(self) -> str:
        """In words, for errors."""
        axes = ["batch", *(["position"] if self.several else []), *map(str, self.feature)]
        return f"a {self.kind} [{', '.join(axes)}]"


NUMBER = Shape("number")
GATE = Shape("gate")


def name_of(node: Node) -> str:
    """A node as errors name it."""
    if isinstance(node, Read):
        return f"read {label(node.site, node.layer)}"
    return type(node).__name__.lower()


def site_feature(
    adapter: Adapter, site: str, layer: int | None, head: int | None
) -> tuple[int, ...]:
    """Sizes of a site's value after batch and position."""
    if site == "logits":
        return (adapter.d_vocab,)
    if site not in HEAD_SITES or layer is None:
        return (adapter.d_model,)
    n_heads, d_head = adapter.heads(layer)
    width = d_head if site == "z" else adapter.d_model
    return (width,) if head is not None else (n_heads, width)


def shape_of(node: Node, adapter: Adapter, known: dict[Node, Shape]) -> Shape:
    """The shape of a node, remembered in `known`.

    Raises:
        GraphError: where values are combined that do not fit.
    """
    if node not in known:
        known[node] = _shape(node, adapter, known)
    return known[node]


def _shape(node: Node, adapter: Adapter, known: dict[Node, Shape]) -> Shape:
    of = functools.partial(shape_of, adapter=adapter, known=known)
    match node:
        case Read():
            one = isinstance(node.at, Steps) or node.at == "last" or node.phase == "decode"
            several = not one and not (isinstance(node.at, tuple) and len(node.at) == 1)
            return Shape("vector", several, site_feature(adapter, node.site, node.layer, node.head))
        case Number():
            return NUMBER
        case IsModality():
            return GATE
        case Constant():
            if node.value.ndim not in (1, 2, 3):
                raise GraphError(
                    f"a constant of shape {tuple(node.value.shape)}; expected [d_model], "
                    "[batch, d_model] or [batch, position, d_model]"
                )
            return Shape("vector", node.value.ndim == 3, (node.value.shape[-1],))
        case Mean():
            inner = of(node.of)
            if not inner.several:
                raise GraphError(
                    f"mean of {name_of(node.of)}, which is {inner}: there are no positions to "
                    'take the mean over; read a span, such as at="prompt"'
                )
            return Shape(inner.kind, False, inner.feature)
        case Project():
            return _projected(node, of(node.of), of(node.vector))
        case Lens():
            inner = of(node.of)
            if inner.feature != (adapter.d_model,):
                raise GraphError(
                    f"lens of {name_of(node.of)}, which is {inner}; the head takes "
                    f"states of the stream, {adapter.d_model} wide"
                )
            wrong = [t for t in node.tokens or () if not 0 <= t < adapter.d_vocab]
            if wrong:
                raise GraphError(f"lens: no tokens {wrong}; ids are 0 to {adapter.d_vocab - 1}")
            count = adapter.d_vocab if node.tokens is None else len(node.tokens)
            return Shape("vector", inner.several, (count,))
        case Arithmetic():
            return _combined(f"'{node.op}'", of(node.left), of(node.right))
        case Compare():
            both = _combined(f"'{node.op}'", of(node.left), of(node.right))
            if both != NUMBER:
                raise GraphError(
                    f"'{node.op}' compares {of(node.left)} with {of(node.right)}; a gate needs one "
                    "number a row: project the vector on a direction, take the mean of positions"
                )
            return GATE
        case Logic():
            for part in node.of:
                _require_gate(part, of(part), f"'{node.op}'")
            return GATE
        case Select():
            _require_gate(node.gate, of(node.gate), "select")
            return _combined("select", of(node.then), of(node.otherwise))
    raise GraphError(f"no such node: {type(node).__name__}")


def _projected(node: Project, inner: Shape, axis: Shape) -> Shape:
    if node.vector.value.ndim != 1 or inner.feature != axis.feature:
        raise GraphError(
            f"{name_of(node.of)} is {inner}, the direction it is projected on has shape "
            f"{tuple(node.vector.value.shape)}; both must be of this model and of one site"
        )
    if node.centre is not None and node.centre.value.shape != node.vector.value.shape:
        raise GraphError(
            f"project: the centre has shape {tuple(node.centre.value.shape)}, the direction "
            f"{tuple(node.vector.value.shape)}; expected the same"
        )
    return Shape("number", inner.several)


def _combined(what: str, left: Shape, right: Shape) -> Shape:
    if "gate" in (left.kind, right.kind):
        raise GraphError(f"{what} takes numbers and vectors, not gates; use select(gate, a, b)")
    features = {one.feature for one in (left, right) if one.feature}
    if len(features) > 1:
        raise GraphError(f"{what} of {left} and {right}: they have different widths")
    several = left.several or right.several
    if any(one == Shape("number", several=True) for one in (left, right)) and features:
        raise GraphError(
            f"{what} of {left} and {right}: take the mean of the numbers over positions first"
        )
    return Shape("vector", several, features.pop()) if features else Shape("number", several)


def _require_gate(node: Node, shape: Shape, what: str) -> None:
    if shape.kind != "gate":
        raise GraphError(
            f"{what} takes a gate, {name_of(node)} is {shape}; compare it with a threshold: "
            "value > 3.0"
        )
