"""The self-rectification signals: how much a weak drift correction brings refusal back.

All are read at the last prompt token, in units of the refusal direction's length at the layer
they are read at (harmless text 0, harmful text 1).
"""

from collections.abc import Sequence
from typing import Literal

from regap_interp.directions import Direction
from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import Node, read

Signal = Literal["paired_gain", "depth_gain", "absolute"]
SIGNALS: tuple[Signal, ...] = ("paired_gain", "depth_gain", "absolute")


def refusal_coordinate(layer: int, refusal: Direction, under: Sequence[Edit] | None = None) -> Node:
    """Refusal coordinate after `layer`, in units of its norm, in the pass that `under` edits."""
    return read("resid_post", layer, under=under).project(refusal, unit="norm")


def signal_node(
    kind: Signal,
    weak: Sequence[Edit],
    *,
    layer: int,
    refusal: Direction,
    diagnostic: int,
    diagnostic_refusal: Direction,
) -> Node:
    """One signal for each row, as a node of a graph.

    Args:
        kind: "paired_gain": refusal at the diagnostic layer under the weak correction minus
            without it. "depth_gain": refusal at the diagnostic layer minus refusal at the
            corrected one, both under the weak correction. "absolute": refusal at the diagnostic
            layer under the weak correction.
        weak: The weak correction; give all signals the same edits, so that they share its pass.
        layer: Where it acts.
        refusal: The refusal direction there.
        diagnostic: A later layer.
        diagnostic_refusal: The refusal direction there.
    """
    after = refusal_coordinate(diagnostic, diagnostic_refusal, weak)
    if kind == "absolute":
        return after
    if kind == "depth_gain":
        return after - refusal_coordinate(layer, refusal, weak)
    return after - refusal_coordinate(diagnostic, diagnostic_refusal, ())
