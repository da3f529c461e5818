"""Two circuits beside each other: shared, lost and new edges."""

from dataclasses import dataclass

from analyses.circuits.circuit import Circuit, Edge
from analyses.circuits.drawing import CircuitView, Panel
from regap_interp.views import About, Shown


@dataclass(frozen=True, eq=False)
class Comparison(Shown):
    """Made by `Circuit.compare`."""

    first: Circuit
    second: Circuit
    names: tuple[str, str] = ("first", "second")

    @property
    def shared(self) -> tuple[tuple[Edge, Edge], ...]:
        """Edges of both, as they are in either."""
        theirs = {edge.ends: edge for edge in self.second.edges}
        mine = (edge for edge in self.first.edges if edge.ends in theirs)
        return tuple((edge, theirs[edge.ends]) for edge in mine)

    @property
    def lost(self) -> tuple[Edge, ...]:
        """Edges of the first one alone."""
        return _alone(self.first, self.second)

    @property
    def new(self) -> tuple[Edge, ...]:
        """Edges of the second one alone."""
        return _alone(self.second, self.first)

    @property
    def overlap(self) -> float:
        """Shared edges over all edges of either: 1 for equal circuits, 0 for strangers."""
        every = len(self.shared) + len(self.lost) + len(self.new)
        return len(self.shared) / every if every else 1.0

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<Comparison {len(self.shared)} shared edges, {len(self.lost)} only "
            f"{self.names[0]}, {len(self.new)} only {self.names[1]}, overlap {self.overlap:.2f}>"
        )

    def view(self, title: str = "") -> CircuitView:
        """Both circuits with equal nodes at equal places; shared edges stand back."""
        shared = {mine.ends for mine, _ in self.shared}
        panels = [
            Panel(name, dict(one.nodes), one.edges, frozenset(shared))
            for name, one in zip(self.names, (self.first, self.second), strict=True)
        ]
        about = About(
            model=self.first.model,
            note=f"n {self.first.n} and {self.second.n}; {len(shared)} shared edges (pale), "
            f"{len(self.lost)} only {self.names[0]}, {len(self.new)} only {self.names[1]}",
        )
        return CircuitView(panels, self.first.readout, self.first.metric, title=title, about=about)


def compare(
    first: Circuit, second: Circuit, *, names: tuple[str, str] = ("first", "second")
) -> Comparison:
    """Two circuits beside each other, by their names, such as "text" and "image".

    Raises:
        ValueError: circuits of two models, or for two metrics.
    """
    ours, theirs = ((one.model, one.readout.layer, one.metric) for one in (first, second))
    if ours != theirs:
        raise ValueError(
            f"the circuits end in {ours[2]} after {ours[1]} layers of {ours[0]}, and in "
            f"{theirs[2]} after {theirs[1]} layers of {theirs[0]}; compare circuits of one metric "
            "in one model"
        )
    return Comparison(first, second, names)


def _alone(one: Circuit, other: Circuit) -> tuple[Edge, ...]:
    theirs = {edge.ends for edge in other.edges}
    return tuple(edge for edge in one.edges if edge.ends not in theirs)
