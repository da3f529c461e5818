"""The edits of an intervention graph: how a pass is changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from regap_interp.directions import Direction
from regap_interp.graph.nodes import (
    At,
    Constant,
    Node,
    Operand,
    Phase,
    Steps,
    constant,
    layer_number,
    node,
    position_rule,
)

Op = Literal["add", "remove", "set_coordinate", "replace"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one site, for every row as strong as `strength` says; 0 changes nothing."""

    op: Op
    site: str
    layer: int | None
    value: Node
    """add: what is added; remove, set_coordinate: the direction; replace: the new value."""
    strength: Node
    """A number, or one for each row."""
    at: At
    phase: Phase
    to: Node | None = None
    """set_coordinate: the coordinate to set."""
    centre: Constant | None = None
    """remove, set_coordinate: the zero point of the coordinate."""
    head: int | None = None
    keep_norm: bool = False
    """Scale the edited state back to the length it had."""

    def inputs(self) -> tuple[Node, ...]:
        """The nodes it needs."""
        more = [one for one in (self.to, self.centre) if one is not None]
        return (self.value, self.strength, *more)


def add(
    site: str,
    layer: int | None,
    value: Direction | Tensor | Node,
    *,
    strength: Operand = 1.0,
    at: At | int | Sequence[int] = "prompt",
    phase: Phase | None = None,
    head: int | None = None,
    keep_norm: bool = False,
) -> Edit:
    """`h + strength * value`: steering. A negative strength subtracts.

    Args:
        site: Where, such as "resid_post".
        layer: Decoder layer from 0; None for embed, final_norm and logits.
        value: A direction at its raw length, a `[d_model]` tensor, or a node.
        strength: Multiple of `value`: a number, or a node with one for each row.
        at: Positions of the prompt, or `Steps` of decoding. In decoding the one new token.
        phase: "prefill" unless told otherwise; "decode" for `Steps`.
        head: One head of z or result.
        keep_norm: Scale the state back to the length it had.
    """
    return _edit("add", site, layer, _value(value), strength, at, phase, head, keep_norm=keep_norm)


def remove(
    site: str,
    layer: int | None,
    direction: Direction | Tensor,
    *,
    centred: bool = False,
    strength: Operand = 1.0,
    at: At | int | Sequence[int] = "prompt",
    phase: Phase | None = None,
    head: int | None = None,
) -> Edit:
    """`h - strength * (h . u) u`, u the unit direction: directional ablation.

    Args:
        site: As in `add`.
        layer: As in `add`.
        direction: What is projected out.
        centred: Measure from the direction's own zero point, so that the state moves to its
            centre along the direction instead of to the origin.
        strength: 1 removes the whole component.
        at: As in `add`.
        phase: As in `add`.
        head: As in `add`.
    """
    centre = _centre(direction) if centred else None
    return _edit(
        "remove", site, layer, constant(direction), strength, at, phase, head, centre=centre
    )


def set_coordinate(
    site: str,
    layer: int | None,
    direction: Direction | Tensor,
    to: Operand,
    *,
    strength: Operand = 1.0,
    at: At | int | Sequence[int] = "prompt",
    phase: Phase | None = None,
    head: int | None = None,
) -> Edit:
    """`h + strength * (to - c(h)) u`, c(h) the coordinate of `Direction.coordinate`: clamping.

    Args:
        site: As in `add`.
        layer: As in `add`.
        direction: Whose coordinate is set, from its own zero point if it is a `Direction`.
        to: The coordinate, in units of the stream.
        strength: 1 sets it, less goes part of the way.
        at: As in `add`.
        phase: As in `add`.
        head: As in `add`.
    """
    more = {"to": node(to), "centre": _centre(direction)}
    return _edit(
        "set_coordinate", site, layer, constant(direction), strength, at, phase, head, **more
    )


def replace(
    site: str,
    layer: int | None,
    value: Tensor | Node,
    *,
    strength: Operand = 1.0,
    at: At | int | Sequence[int] = "last",
    phase: Phase | None = None,
    head: int | None = None,
) -> Edit:
    """`h + strength * (value - h)`: patching. At strength 1 exactly `value`.

    Args:
        site: As in `add`.
        layer: As in `add`.
        value: `[d_model]` for every row and position, or `[batch, d_model]`, or
            `[batch, position, d_model]` for the chosen positions in order.
        strength: 1 replaces, less goes part of the way.
        at: As in `add`.
        phase: As in `add`.
        head: As in `add`.
    """
    return _edit("replace", site, layer, _value(value), strength, at, phase, head)


def _edit(
    op: Op,
    site: str,
    layer: int | None,
    value: Node,
    strength: Operand,
    at: At | int | Sequence[int],
    phase: Phase | None,
    head: int | None,
    **more: Any,
) -> Edit:
    rule = position_rule(at)
    when: Phase = phase or ("decode" if isinstance(rule, Steps) else "prefill")
    return Edit(op, site, layer_number(layer), value, node(strength), rule, when, head=head, **more)


def _value(value: Direction | Tensor | Node) -> Node:
    return value if isinstance(value, Node) else constant(value)


def _centre(direction: Direction | Tensor) -> Constant | None:
    return Constant(direction.centre) if isinstance(direction, Direction) else None
