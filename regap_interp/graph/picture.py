"""What a drawing of a graph shows: its passes, the boxes in and between them, what leads where."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal

from regap_interp.graph import words
from regap_interp.graph.alike import alike
from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import (
    LAYER_SITES,
    MODEL_SITES,
    Arithmetic,
    Compare,
    Constant,
    IsModality,
    Lens,
    Logic,
    Node,
    Number,
    Project,
    Read,
    Select,
    walk,
)
from regap_interp.graph.places import label

if TYPE_CHECKING:
    from regap_interp.graph.graph import Graph

Kind = Literal["read", "edit", "value", "gate"]
Under = tuple[Edit, ...] | None
Item = Node | tuple[Edit, Under]
"""What becomes a box, alone or with others like it: a value, or an edit in one of the passes."""


@dataclass(frozen=True, order=True)
class Column:
    """A place along the layers; columns sort in the order of a pass."""

    first: int
    last: int
    label: str


@dataclass(frozen=True)
class Box:
    """One box of the drawing."""

    kind: Kind
    lines: tuple[str, ...]
    lane: int | None
    """Number of the pass it is in; None for a value computed between the passes."""
    column: Column | None
    """Where in the pass."""
    depth: int
    """Steps of computing from what is read; 0 for reads and edits."""
    order: int
    """Among the boxes of one place in one pass."""
    inputs: tuple[int, ...]
    """Numbers of the boxes that lead to it."""
    is_output: bool = False


@dataclass(frozen=True)
class Picture:
    """A graph, ready to be laid out."""

    passes: tuple[str, ...]
    """Their names, the pass that the graph edits last."""
    has_main: bool
    """Whether the last pass is the one that the graph edits."""
    boxes: tuple[Box, ...]


def picture(graph: "Graph") -> Picture:
    """Boxes and edges of a graph; what repeats over layers becomes one box."""
    return _Builder(graph).build()


class _Builder:
    def __init__(self, graph: "Graph") -> None:
        roots = [one for edit in graph.edits for one in edit.inputs()]
        self.nodes = list(walk([*roots, *graph.outputs.values()]))
        self.outputs: dict[Node, list[str]] = defaultdict(list)
        for name, node in graph.outputs.items():
            self.outputs[node].append(name)
        unders: dict[Under, None] = {
            node.under: None for node in self.nodes if isinstance(node, Read)
        }
        self.has_main = bool(graph.edits) or None in unders
        unders.pop(None, None)
        order = sorted(unders, key=lambda under: len(under or ()))  # the bare model first
        self.lanes: dict[Under, int] = {
            under: lane for lane, under in enumerate([*order, *[None] * self.has_main])
        }
        self.edits: list[tuple[Edit, Under]] = list(
            dict.fromkeys(
                (edit, under)
                for under in self.lanes
                for edit in (graph.edits if under is None else under)
            )
        )
        self.written_inside = self._written_inside()
        self.sources = self._sources()
        self.keys = self._keys()

    def build(self) -> Picture:
        drawn: list[Item] = [node for node in self.nodes if self.sources[node] == (node,)]
        items: list[Item] = [*drawn, *self.edits]
        inputs = {item: self._inputs(item) for item in items}
        groups = alike({item: self._kind_key(item) for item in items}, inputs)
        number = {item: index for index, group in enumerate(groups) for item in group}
        names = self._names(groups)
        depths: dict[int, int] = {}
        for item in drawn:  # inputs come first
            above = [depths[number[one]] + 1 for one in inputs[item]]
            deepest = 0 if isinstance(item, Read) else max(above, default=1)
            depths[number[item]] = max(depths.get(number[item], 0), deepest)
        boxes = []
        for index, group in enumerate(groups):
            leading = dict.fromkeys(number[one] for item in group for one in inputs[item])
            boxes.append(self._box(group, tuple(leading), depths.get(index, 0), names))
        passes = (
            self._pass_tag(under) + words.pass_name(under).removeprefix("probe")
            if under
            else words.pass_name(under)
            for under in self.lanes
        )
        return Picture(tuple(passes), self.has_main, tuple(boxes))

    def _pass_tag(self, under: Under) -> str:
        """A short name of a pass."""
        if not under:
            return "main" if under is None else "bare"
        probes = [one for one in self.lanes if one]
        return "probe" if len(probes) == 1 else f"probe {probes.index(under) + 1}"

    def _written_inside(self) -> set[Node]:
        """Values that stand in the text of the one box that uses them, not in their own."""
        users: dict[Node, list[Node | Edit]] = defaultdict(list)
        for node in self.nodes:
            if not isinstance(node, Read):
                for one in node.inputs():
                    users[one].append(node)
        for edit, _ in self.edits:
            for one in edit.inputs():
                users[one].append(edit)
        inside: set[Node] = set()
        for node in reversed(self.nodes):
            by = users[node]
            if node in self.outputs or not by:
                continue
            only_edits = all(isinstance(user, Edit) or user in inside for user in by)
            if isinstance(node, Arithmetic):
                part = isinstance(by[0], Arithmetic)
            else:
                part = _kind(node) == "gate" and isinstance(by[0], Logic)
            folded = isinstance(node, Arithmetic | Select) and only_edits
            if folded or (part and len(by) == 1):
                inside.add(node)
        return inside

    def _sources(self) -> dict[Node, tuple[Node, ...]]:
        """The drawn values behind every value; its own box if it has one."""
        found: dict[Node, tuple[Node, ...]] = {}
        for node in self.nodes:
            if isinstance(node, Number | Constant):
                found[node] = ()
            elif node in self.written_inside:
                found[node] = _unique(one for child in node.inputs() for one in found[child])
            else:
                found[node] = (node,)
        return found

    def _inputs(self, item: Item) -> tuple[Item, ...]:
        if isinstance(item, Read):
            return ()
        inputs = item[0].inputs() if isinstance(item, tuple) else item.inputs()
        return _unique(one for child in inputs for one in self.sources[child])

    def _kind_key(self, item: Item) -> Hashable:
        """What an item is, apart from layers and the numbers in fixed vectors."""
        if isinstance(item, tuple):
            edit, under = item
            parts = (edit.value, edit.strength, edit.to)
            values = (None if one is None else self.keys[one] for one in parts)
            fixed = (edit.op, edit.at, edit.phase, edit.head, edit.keep_norm, edit.centre is None)
            return (*fixed, edit.layer is None and edit.site, self.lanes[under], *values)
        return (self.keys[item], item in self.outputs)

    def _keys(self) -> dict[Node, int]:
        """What every value is, apart from layers and the numbers in fixed vectors, as a number."""
        numbers: dict[Hashable, int] = {}
        found: dict[Node, int] = {}
        for node in self.nodes:
            inside = (found[one] if self.sources[one] != (one,) else -1 for one in node.inputs())
            key = (type(node).__name__, self._own_key(node), *inside)
            found[node] = numbers.setdefault(key, len(numbers))
        return found

    def _own_key(self, node: Node) -> Hashable:
        match node:
            case Read():
                lane = self.lanes[node.under]
                return (node.site, node.layer is None, node.at, lane, node.phase, node.head)
            case Number():
                return node.value
            case Constant():
                return tuple(node.value.shape)
            case Lens():
                return node.tokens
            case IsModality():
                return node.modality
            case Arithmetic() | Compare() | Logic():
                return node.op
            case Project():
                return node.unit
        return None

    def _names(self, groups: Sequence[tuple[Item, ...]]) -> dict[Node, str]:
        """Reads by their place, values by the output or a letter."""
        names: dict[Node, str] = {}
        taken = {name for given in self.outputs.values() for name in given}
        letters = (name for name in _letters() if name not in taken)
        reads = [[item for item in group if isinstance(item, Read)] for group in groups]
        passes: dict[str, set[Under]] = defaultdict(set)
        for some in filter(None, reads):
            passes[_places(some, "")].add(some[0].under)
        for some in filter(None, reads):
            place = _places(some, "")
            tag = f" ({self._pass_tag(some[0].under)})" if len(passes[place]) > 1 else ""
            names |= dict.fromkeys(some, place + tag)
        for group in groups:
            first = group[0]
            if isinstance(first, Node) and _kind(first) == "value" and first not in names:
                own = self.outputs.get(first, [])
                name = _quoted(own[0]) if own and len(group) == 1 else next(letters)
                names |= {item: name for item in group if isinstance(item, Node)}
        return names

    def _box(
        self, group: tuple[Item, ...], inputs: tuple[int, ...], depth: int, names: dict[Node, str]
    ) -> Box:
        first = group[0]
        if isinstance(first, tuple):
            edits = [item[0] for item in group if isinstance(item, tuple)]
            lines, lane, column = _edit_lines(edits, names), self.lanes[first[1]], _column(edits)
            return Box("edit", tuple(lines), lane, column, 0, _order(edits), inputs)
        output = self._output_line(group)
        if isinstance(first, Read):
            reads = [item for item in group if isinstance(item, Read)]
            lines = [_places(reads), words.positions(first.at, first.phase), *output]
            lane, column = self.lanes[first.under], _column(reads)
            return Box("read", tuple(lines), lane, column, 0, _order(reads), inputs, bool(output))
        text = words.expression(first, {node: n for node, n in names.items() if node is not first})
        if _kind(first) == "value":
            text = f"{names[first]} = {text}"
        return Box(_kind(first), (text, *output), None, None, depth, 0, inputs, bool(output))

    def _output_line(self, group: tuple[Item, ...]) -> list[str]:
        names = [
            _quoted(name)
            for item in group
            if isinstance(item, Node)
            for name in self.outputs.get(item, [])
        ]
        if len(names) > 3:
            return [f"outputs: {names[0]} \u2026 {names[-1]} ({len(names)})"]
        return [f"output{'s' * (len(names) > 1)}: {', '.join(names)}"] if names else []


def _edit_lines(edits: Sequence[Edit], names: Mapping[Node, str]) -> list[str]:
    first = edits[0]
    vectors = {id(e.value.value) for e in edits if isinstance(e.value, Constant)}
    value = f"{len(vectors)} directions" if len(vectors) > 1 else None
    value = value or words.expression(first.value, names)
    what = {
        "add": f"add {value}",
        "remove": f"remove {value}",
        "set_coordinate": f"set coordinate along {value}",
        "replace": f"replace by {value}",
    }[first.op]
    if first.to is not None:
        what += f" to {words.expression(first.to, names)}"
    if first.op == "remove" and first.centre is not None:
        what += ", down to its centre"
    lines = [what, f"at {_places(edits)}", words.positions(first.at, first.phase)]
    lines += [words.strength(first, names), "length kept" if first.keep_norm else ""]
    return [line for line in lines if line]


def _places(of: Sequence[Edit] | Sequence[Read], between: str = " \u00b7 layers ") -> str:
    """Sites with their layers, those of equal layers together."""
    head = "" if of[0].head is None else f" head {of[0].head}"
    if len({(one.site, one.layer) for one in of}) == 1:
        return label(of[0].site, of[0].layer) + head
    layers: dict[str, set[int]] = defaultdict(set)
    for one in of:
        layers[one.site].update([] if one.layer is None else [one.layer])
    sites: dict[str, list[str]] = defaultdict(list)
    for site, numbers in layers.items():
        sites[words.layers(numbers)].append(site)
    texts = (
        f"{', '.join(names)}{between}{run}" if between else f"{', '.join(names)}[{run}]"
        for run, names in sites.items()
    )
    return "; ".join(texts) + head


def _column(of: Sequence[Edit] | Sequence[Read]) -> Column:
    if of[0].layer is None:
        site = of[0].site
        place = MODEL_SITES.index(site) if site in MODEL_SITES else 0
        return Column(-1, -1, site) if place == 0 else Column(10**6 + place, 10**6 + place, site)
    numbers = sorted({one.layer for one in of if one.layer is not None})
    name = f"layer{'s' * (len(numbers) > 1)} {words.layers(numbers)}"
    return Column(numbers[0], numbers[-1], name)


def _order(of: Sequence[Edit] | Sequence[Read]) -> int:
    """The order of a pass within a layer, edits before reads of their site."""
    places = [LAYER_SITES.index(one.site) for one in of if one.site in LAYER_SITES]
    return 2 * min(places, default=0) + isinstance(of[0], Read)


def _kind(node: Node) -> Kind:
    return "gate" if isinstance(node, Compare | Logic | IsModality) else "value"


def _quoted(name: str) -> str:
    short = words.shortened(name, 24)
    return short if name.isidentifier() else f"\u201c{short}\u201d"


def _letters() -> Iterator[str]:
    for turn in count():
        for letter in "abcdefghijklmnopqrstuvwxyz":
            yield f"{letter}{turn or ''}"


def _unique(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(nodes))
