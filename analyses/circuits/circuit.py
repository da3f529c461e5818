"""A circuit: chosen edges with their contributions, as a result that can be kept and compared."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.circuits.nodes import Node, named
from analyses.patching.agreement import Agreement
from regap_interp.views import About, Shown
from regap_interp.views.about import words

if TYPE_CHECKING:
    from analyses.circuits.comparison import Comparison
    from analyses.circuits.drawing import CircuitView

_FORMAT = "regap circuit 1"
_PLAIN = ("metric", "model", "n", "method", "selection")


@dataclass(frozen=True)
class Edge:
    """From what a node writes to what a later one reads."""

    sender: Node
    receiver: Node
    contribution: float
    """Mean over items, in units of the metric: what it would lose without the edge."""

    @property
    def ends(self) -> tuple[Node, Node]:
        """Both nodes."""
        return self.sender, self.receiver


@dataclass(frozen=True, eq=False)
class Circuit(Shown):
    """A part of a model's graph."""

    nodes: Mapping[Node, float]
    """All that are ends of edges, but for the readout, with their own mean contributions."""
    edges: tuple[Edge, ...]
    """In the order in which they were chosen."""
    readout: Node
    metric: str
    model: str
    n: int
    """Items that contributions are means over."""
    method: str
    selection: str
    """How edges were chosen."""
    agreement: Agreement | None = None
    """Of the scores with edges that were really ablated, if that was tried."""

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<Circuit {len(self.nodes)} nodes, {len(self.edges)} edges ({self.selection}), "
            f"{self.metric}, {self.method}, n={self.n}>"
        )

    @property
    def inner(self) -> frozenset[Node]:
        """Its nodes without embeddings: to ablate those is to replace the request."""
        return frozenset(node for node in self.nodes if node.kind != "embed")

    def compare(
        self, other: "Circuit", *, names: tuple[str, str] = ("first", "second")
    ) -> "Comparison":
        """Which edges both have, and which only one.

        Args:
            other: Such as that of images, where this one is that of text.
            names: For tables and pictures.

        Raises:
            ValueError: the other circuit is of another model, or for another metric.
        """
        from analyses.circuits.comparison import compare

        return compare(self, other, names=names)

    def view(self, title: str = "") -> "CircuitView":
        """The circuit as a layered graph."""
        from analyses.circuits.drawing import CircuitView, Panel

        checked = f"; {in_words(self.agreement)}" if self.agreement else ""
        note = f"{self.method}, edges: {self.selection}{checked}"
        about = About(model=self.model, n=self.n, note=note)
        return CircuitView(
            [Panel("", dict(self.nodes), self.edges)],
            self.readout,
            self.metric,
            title=title,
            about=about,
        )

    def to_graph(self) -> Any:
        """A `networkx.DiGraph`; nodes by name with `layer`, `kind` and `contribution`.

        Signs that no XML can hold are shown as their numbers.

        Raises:
            ImportError: networkx is not installed.
        """
        graph = _networkx().DiGraph(
            metric=words(self.metric, 400),
            model=words(self.model, 400),
            n=self.n,
            method=self.method,
            selection=self.selection,
        )
        for node, value in {**self.nodes, self.readout: 0.0}.items():
            graph.add_node(str(node), layer=node.layer, kind=node.kind, contribution=value)
        for edge in self.edges:
            graph.add_edge(str(edge.sender), str(edge.receiver), contribution=edge.contribution)
        return graph

    def save(self, path: str | Path) -> Path:
        """Write to a file: `.json` (read again by `load`), `.graphml`, or what views write.

        Raises:
            ImportError: networkx is not installed, for `.graphml`.
            ValueError: the file has another suffix.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".json":
                path.write_text(json.dumps(self._plain(), indent=1) + "\n", encoding="utf-8")
            case ".graphml":
                _networkx().write_graphml_xml(self.to_graph(), path)
            case _:
                return self.view().save(path)
        return path

    def _plain(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "n_layers": self.readout.layer,
            **{name: getattr(self, name) for name in _PLAIN},
            "agreement": self.agreement and self.agreement.plain(),
            "nodes": [[str(node), value] for node, value in self.nodes.items()],
            "edges": [[str(one.sender), str(one.receiver), one.contribution] for one in self.edges],
        }

    @staticmethod
    def load(path: str | Path) -> "Circuit":
        """Read a `.json` file that `save` wrote.

        Raises:
            ValueError: the file is of another make, or damaged.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f"{path} holds no circuit; give a .json file written by Circuit.save")
        try:
            return _read(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error


def _read(found: Mapping[str, Any]) -> Circuit:
    depth, agreement = found["n_layers"], found["agreement"]
    plain: dict[str, Any] = {name: found[name] for name in _PLAIN}
    for name, value in {"n_layers": depth, **plain}.items():
        wanted = int if name in ("n", "n_layers") else str
        if type(value) is not wanted:
            raise TypeError(f"{name} is {value!r}")
    nodes = {named(name, depth): float(value) for name, value in found["nodes"]}
    readout = Node(depth, "readout")
    edges = tuple(
        Edge(named(sender, depth), named(receiver, depth), float(value))
        for sender, receiver, value in found["edges"]
    )
    if any(not -1 <= node.layer < depth for node in nodes):
        raise ValueError(f"there are nodes outside of {depth} layers")
    for edge in edges:
        if not {edge.sender, edge.receiver} <= {*nodes, readout} or not edge.sender.reaches(
            edge.receiver
        ):
            raise ValueError(f"{edge.sender} to {edge.receiver} is no edge between its nodes")
    return Circuit(
        nodes=nodes,
        edges=edges,
        readout=readout,
        agreement=agreement and Agreement.read(agreement),
        **plain,
    )


def in_words(agreement: Agreement) -> str:
    """For captions."""
    return (
        f"Spearman {agreement.spearman:.2f} with {agreement.n} edges really ablated, half of them "
        f"large, off by at most {agreement.largest:.2g} of the whole effect"
    )


def _networkx() -> Any:
    try:
        return importlib.import_module("networkx")
    except ImportError as error:
        raise ImportError(
            "graphs and .graphml files need networkx, which is not installed: pip install "
            "networkx; .json files do not"
        ) from error
