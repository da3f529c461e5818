"""The values of an intervention graph: what is read in a pass and what is computed from it.

A value is a node. Nodes are data, made by the functions and operators below and never run here.
Every value has one entry for each row (request) of a batch, so a gate decides row by row.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from regap_interp.directions import Direction, Origin

if TYPE_CHECKING:
    from regap_interp.graph.edits import Edit

Phase = Literal["prefill", "decode", "both"]
Span = Literal["last", "prompt", "text", "image", "audio", "video", "special"]
SPANS: tuple[Span, ...] = ("last", "prompt", "text", "image", "audio", "video", "special")
MODALITIES = ("text", "image", "audio", "video", "omni")
LAYER_SITES = ("resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""In the order in which a layer computes them."""
MODEL_SITES = ("embed", "final_norm", "logits")
HEAD_SITES = ("z", "result")


@dataclass(frozen=True)
class Steps:
    """Steps of decoding from `start` to `stop` (exclusive, None for the end), counted from 1.

    Step 1 is the pass over the first generated token.
    """

    start: int = 1
    stop: int | None = None


At = Span | tuple[int, ...] | Steps
"""Which positions: the last prompt token; all of the prompt; those of one role; indices counted
from the first prompt token of each row, or from its last if negative; or steps of decoding."""


class Node:
    """A value with one entry for each row. Combine nodes with `+ - * /`, `> >= < <=`, `& | ~`."""

    def inputs(self) -> tuple["Node", ...]:
        """The nodes that this one is computed from."""
        return ()

    def mean(self) -> "Mean":
        """The mean over the positions that were read."""
        return Mean(self)

    def project(self, direction: Direction | Tensor, *, unit: "Unit" = "stream") -> "Project":
        """The coordinate along a direction; see `Project`."""
        vector = constant(direction)
        centre = direction.centre if isinstance(direction, Direction) else None
        return Project(self, vector, None if centre is None else Constant(centre), unit)

    def clip(self, low: float, high: float) -> "Arithmetic":
        """The value held between the numbers `low` and `high`."""
        return Arithmetic("min", Arithmetic("max", self, Number(low)), Number(high))

    def __add__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("+", self, node(other))

    def __radd__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("+", node(other), self)

    def __sub__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("-", self, node(other))

    def __rsub__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("-", node(other), self)

    def __mul__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("*", self, node(other))

    def __rmul__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("*", node(other), self)

    def __truediv__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("/", self, node(other))

    def __rtruediv__(self, other: "Operand") -> "Arithmetic":
        return Arithmetic("/", node(other), self)

    def __neg__(self) -> "Arithmetic":
        return Arithmetic("*", self, Number(-1.0))

    def __gt__(self, other: "Operand") -> "Compare":
        return Compare(">", self, node(other))

    def __ge__(self, other: "Operand") -> "Compare":
        return Compare(">=", self, node(other))

    def __lt__(self, other: "Operand") -> "Compare":
        return Compare("<", self, node(other))

    def __le__(self, other: "Operand") -> "Compare":
        return Compare("<=", self, node(other))

    def __and__(self, other: "Operand") -> "Logic":
        return Logic("and", (self, node(other)))

    def __or__(self, other: "Operand") -> "Logic":
        return Logic("or", (self, node(other)))

    def __invert__(self) -> "Logic":
        return Logic("not", (self,))

    def __bool__(self) -> bool:
        """Refuse `if gate:`, `a < b < c` and `and`: a node has no value while a graph is written.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a graph's node has no truth value while the graph is written; combine gates with "
            "& | ~ and choose with select(gate, then, otherwise)"
        )


Operand = Node | float | int
Unit = Literal["stream", "norm"]


@dataclass(frozen=True, eq=False)
class Read(Node):
    """The value of a site at some positions, after the graph's own edits there.

    One position gives `[batch, d_model]`, several give `[batch, position, d_model]`; heads have
    `d_head` or, with `head=None`, one more axis.
    """

    site: str
    """A site of the adapter, such as "resid_post"."""
    layer: int | None
    """Decoder layer from 0; None for embed, final_norm and logits."""
    at: At = "last"
    under: tuple["Edit", ...] | None = None
    """None: in the pass that the graph edits. Otherwise in a pass of its own that has just these
    edits; `()` is the bare model. That is how a later layer can decide an edit at an earlier one.
    """
    phase: Literal["prefill", "decode"] = "prefill"
    head: int | None = None

    def inputs(self) -> tuple[Node, ...]:
        return tuple(one for edit in self.under or () for one in edit.inputs())


@dataclass(frozen=True, eq=False)
class Constant(Node):
    """A fixed tensor: a direction `[d_model]`, or states of another run `[batch, ...]`.

    The tensor is not copied: do not change it in place.
    """

    value: Tensor
    origin: Origin | None = None
    """Where a direction was measured; the graph refuses to use it elsewhere."""


@dataclass(frozen=True, eq=False)
class Number(Node):
    """A fixed number, the same for every row."""

    value: float


@dataclass(frozen=True, eq=False)
class Mean(Node):
    """Mean over the positions of a read that has several; NaN for a row that has none."""

    of: Node

    def inputs(self) -> tuple[Node, ...]:
        return (self.of,)


@dataclass(frozen=True, eq=False)
class Project(Node):
    """Signed distance from `centre` along `vector`: `(x - centre) . vector / |vector|`.

    With `unit="norm"` once more divided by `|vector|`: 0 at the centre, 1 at the mean pointed to.
    Without a centre the zero point is the origin of the residual stream.
    """

    of: Node
    vector: Constant
    centre: Constant | None
    unit: Unit = "stream"

    def inputs(self) -> tuple[Node, ...]:
        centre = () if self.centre is None else (self.centre,)
        return (self.of, self.vector, *centre)


@dataclass(frozen=True, eq=False)
class Lens(Node):
    """Logits of some tokens if the stream ended here: final norm and head on a read."""

    of: Node
    tokens: tuple[int, ...] | None
    """Token ids, in order of the last axis; None for the whole vocabulary."""

    def inputs(self) -> tuple[Node, ...]:
        return (self.of,)


@dataclass(frozen=True, eq=False)
class Arithmetic(Node):
    """`+ - * / min max` of two values; a number for each row combines with a vector for each."""

    op: str
    left: Node
    right: Node

    def inputs(self) -> tuple[Node, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, eq=False)
class Compare(Node):
    """A gate: true for the rows where the comparison holds. NaN compares false."""

    op: str
    left: Node
    right: Node

    def inputs(self) -> tuple[Node, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, eq=False)
class Logic(Node):
    """`and`, `or`, `not` of gates."""

    op: str
    of: tuple[Node, ...]

    def inputs(self) -> tuple[Node, ...]:
        return self.of


@dataclass(frozen=True, eq=False)
class Select(Node):
    """`then` for the rows where the gate is true, `otherwise` for the others."""

    gate: Node
    then: Node
    otherwise: Node

    def inputs(self) -> tuple[Node, ...]:
        return (self.gate, self.then, self.otherwise)


@dataclass(frozen=True, eq=False)
class IsModality(Node):
    """A gate: rows of one modality. A row with several kinds of media is "omni"."""

    modality: str


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "min": torch.minimum,
    "max": torch.maximum,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def read(
    site: str,
    layer: int | None = None,
    *,
    at: At | int | Sequence[int] = "last",
    under: Sequence["Edit"] | None = None,
    phase: Literal["prefill", "decode"] | None = None,
    head: int | None = None,
) -> Read:
    """The value of a site. See `Read`; steps of decoding are `at=Steps(...)`."""
    if under is not None and not isinstance(under, Sequence):
        raise TypeError("under is a list of edits: [edit] for a probe, [] for the bare model")
    rule = position_rule(at)
    return Read(
        site,
        layer_number(layer),
        rule,
        None if under is None else tuple(under),
        phase or ("decode" if isinstance(rule, Steps) else "prefill"),
        head,
    )


def lens(of: Node, tokens: Sequence[int] | None = None) -> Lens:
    """Logit lens of a read of the residual stream; see `Lens`."""
    return Lens(of, None if tokens is None else tuple(tokens))


def select(gate: Operand, then: Operand, otherwise: Operand) -> Select:
    """Row by row `then` or `otherwise`.

    >>> import regap_interp as ri
    >>> gate = ri.modality("image") & (ri.read("resid_post", 7) > 0)
    >>> strength = ri.select(gate, -1.5, 0.0)
    """
    return Select(node(gate), node(then), node(otherwise))


def modality(name: str) -> IsModality:
    """A gate that is true for rows of one modality: "text", "image", "audio", "video", "omni"."""
    return IsModality(name)


def node(value: Operand) -> Node:
    """`value` as a node; numbers are wrapped.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Node):
        return value
    if isinstance(value, bool):
        raise TypeError(
            f"a graph combines nodes and numbers, got {value}; gates are made with > >= < <=, and "
            "`==` is none"
        )
    if isinstance(value, int | float) or getattr(value, "shape", None) == ():
        return Number(float(value))
    raise TypeError(
        f"a graph combines nodes and numbers, got {type(value).__name__}; wrap a tensor of states "
        "or a direction with constant(tensor)"
    )


def constant(value: Direction | Tensor) -> Constant:
    """A direction's raw vector, which remembers where it was measured, or any tensor."""
    if isinstance(value, Direction):
        return Constant(value.vector, value.origin)
    if not isinstance(value, Tensor):
        raise TypeError(f"a constant is a tensor or a Direction, got {type(value).__name__}")
    return Constant(value)


def position_rule(at: At | int | Sequence[int]) -> At:
    """A position rule from what users write: one index or a list becomes a tuple."""
    if isinstance(at, str | Steps):
        return at
    indices = cast(Sequence[int], at if isinstance(at, Sequence) else [at])
    return tuple(map(operator.index, indices))


def layer_number(layer: int | None) -> int | None:
    """A layer as a plain int, NumPy's among others; anything else as it is, for the check."""
    try:
        return layer if layer is None or isinstance(layer, bool) else operator.index(layer)
    except TypeError:
        return layer


def walk(roots: Sequence[Node]) -> Iterator[Node]:
    """Every node below `roots`, inputs before what is computed from them, each once."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        one, ready = stack.pop()
        if ready:
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            stack.append((one, True))
            stack.extend((child, False) for child in reversed(one.inputs()))
