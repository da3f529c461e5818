"""Ids for the nodes and edits of a graph while it is written, and the graph behind ids again."""

import graphlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor

from regap_interp.graph import fields
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.fields import EDIT_FIELDS, EDIT_OPS, OPS, REFERENCES
from regap_interp.graph.nodes import Arithmetic, Compare, Constant, Logic, Node

T = TypeVar("T", Node, Edit, Constant)


class Encoder:
    """Writes nodes and edits, giving each an id when it is first met."""

    def __init__(self) -> None:
        self.edits: dict[Edit, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self._nodes: dict[Node, str] = {}
        self._tensor_names: dict[object, str] = {}
        self._count: Counter[str] = Counter()

    def name_edit(self, edit: Edit) -> str:
        """The id of an edit."""
        if edit not in self.edits:
            self.edits[edit] = self._new(edit.op)
        return self.edits[edit]

    def name_node(self, node: Node) -> str:
        """The id of a node."""
        if node not in self._nodes:
            self._nodes[node] = self._new(OPS[fields.op_of(node)][1])
        return self._nodes[node]

    def node(self, node: Node) -> dict[str, Any]:
        """A node as JSON."""
        op = fields.op_of(node)
        return {"op": op, **self._fields(self.name_node(node), node, OPS[op][2])}

    def edit(self, edit: Edit) -> dict[str, Any]:
        """An edit as JSON."""
        return {"op": edit.op, **self._fields(self.name_edit(edit), edit, EDIT_FIELDS)}

    def _fields(self, name: str, thing: Node | Edit, kinds: Mapping[str, str]) -> dict[str, Any]:
        found = {}
        for field, kind in kinds.items():
            try:
                found[field] = self._field(kind.partition(" or null")[0], getattr(thing, field))
            except GraphError as error:
                raise GraphError(f'"{name}": {error}') from None
        return found

    def _field(self, kind: str, value: Any) -> Any:
        if value is None:
            return None
        match kind:
            case "node" | "constant":
                return self.name_node(value)
            case "nodes":
                return [self.name_node(one) for one in value]
            case "edits":
                return [self.name_edit(one) for one in value]
            case "tensor":
                return self._tensor(value)
        return fields.write(kind, value)

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        fields.check_tensor("its value", value)
        # Two views of the same numbers are one tensor.
        key = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if key not in self._tensor_names:
            self._tensor_names[key] = self._new("tensor")
            self.tensors[self._tensor_names[key]] = value
        return {"tensor": self._tensor_names[key], **fields.describe(value)}

    def _new(self, stem: str) -> str:
        self._count[stem] += 1
        return f"{stem}{self._count[stem]}"


class Decoder:
    """Makes the nodes and edits of a written graph, each once, and refuses what does not fit.

    Raises:
        GraphError: naming the node or edit, what was found, and what to do.
    """

    def __init__(
        self, nodes: Mapping[str, Any], edits: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        self._made: dict[str, Node | Edit] = {}
        self._tensors = tensors
        self._used_tensors: set[str] = set()
        both = nodes.keys() & edits.keys()
        if both:
            raise GraphError(f"{fields.shown(min(both))} names both a node and an edit; rename one")
        kinds = {name: _node_kinds(name, one) for name, one in nodes.items()}
        kinds |= {name: _edit_kinds(name, one) for name, one in edits.items()}
        written = {**nodes, **edits}
        self._needs = {name: list(_references(written[name], kinds[name])) for name in written}
        for name in self._order():
            what = "edit" if name in edits else "node"
            self._made[name] = self._make(what, name, written[name], kinds[name])

    def use(self, where: str, name: object, kind: type[T]) -> T:
        """The node or edit of an id."""
        found = self._made.get(name) if isinstance(name, str) else None
        if not isinstance(found, kind):
            expected = {Node: "a node", Edit: "an edit", Constant: "a constant"}[kind]
            raise GraphError(f"{where} is {fields.shown(name)}, which is not the id of {expected}")
        return found

    def check_all_used(self, roots: Iterable[str]) -> None:
        """Refuse what nothing leads to: it would be lost without a word."""
        reached: set[str] = set()
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += self._needs[name]
        for what, names in (
            ("node or edit", self._made.keys() - reached),
            ("tensor", self._tensors.keys() - self._used_tensors),
        ):
            if names:
                raise GraphError(
                    f"{what} {fields.shown(min(names))} is used by nothing; remove it, or name it "
                    "where it belongs"
                )

    def _order(self) -> list[str]:
        known = {
            name: [one for one in needed if one in self._needs]
            for name, needed in self._needs.items()
        }
        try:
            return list(graphlib.TopologicalSorter(known).static_order())
        except graphlib.CycleError as error:
            circle = " -> ".join(error.args[1])
            raise GraphError(
                f"{circle} goes in a circle; a value cannot rest on itself, so let one of them "
                "read another"
            ) from None

    def _make(
        self, what: str, name: str, written: Mapping[str, Any], kinds: Mapping[str, str]
    ) -> Node | Edit:
        values = {
            field: self._field(f'{what} {fields.shown(name)}, "{field}"', kind, written[field])
            for field, kind in kinds.items()
        }
        op = written["op"]
        if what == "edit":
            edit = Edit(op=op, **values)
            _check_edit(name, edit)
            return edit
        make = cast("Callable[..., Node]", OPS[op][0])
        if OPS[op][0] is Logic:
            _check_count(name, op, values["of"])
        return make(op=op, **values) if make in (Arithmetic, Compare, Logic) else make(**values)

    def _field(self, where: str, kind: str, value: Any) -> Any:
        inner, _, absent = kind.partition(" or ")
        if absent == "null" and value is None:
            return None
        match inner:
            case "node":
                return self.use(where, value, Node)
            case "constant":
                return self.use(where, value, Constant)
            case "nodes":
                return tuple(self.use(where, one, Node) for one in _list(where, value))
            case "edits":
                return tuple(self.use(where, one, Edit) for one in _list(where, value))
            case "tensor":
                name, found = fields.tensor(where, value, self._tensors)
                self._used_tensors.add(name)
                return found
        return fields.read(where, kind, value)


def _node_kinds(name: str, written: object) -> Mapping[str, str]:
    where = f"node {fields.shown(name)}"
    kinds = OPS[_op(where, written, tuple(OPS))][2]
    fields.exact_keys(where, written, ("op", *kinds))
    return kinds


def _edit_kinds(name: str, written: object) -> Mapping[str, str]:
    where = f"edit {fields.shown(name)}"
    _op(where, written, EDIT_OPS)
    fields.exact_keys(where, written, ("op", *EDIT_FIELDS))
    return EDIT_FIELDS


def _op(where: str, written: object, known: tuple[str, ...]) -> str:
    if not isinstance(written, dict) or "op" not in written:
        raise GraphError(f'{where} is {fields.shown(written)}; expected an object with an "op"')
    op = written["op"]
    if not isinstance(op, str) or op not in known:
        raise GraphError(f"{where} has the op {fields.shown(op)}; there are {', '.join(known)}")
    return op


def _references(written: Mapping[str, Any], kinds: Mapping[str, str]) -> Iterable[str]:
    for field, kind in kinds.items():
        if kind.partition(" or ")[0] in REFERENCES:
            value = written[field]
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    yield one


def _list(where: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise GraphError(f"{where} is {fields.shown(value)}; expected a list of ids")
    return value


def _check_count(name: str, op: str, gates: tuple[Node, ...]) -> None:
    if len(gates) != 1 if op == "not" else len(gates) < 2:
        expected = "one gate" if op == "not" else "at least two gates"
        raise GraphError(
            f"node {fields.shown(name)} is '{op}' of {len(gates)} gates; expected {expected}"
        )


def _check_edit(name: str, edit: Edit) -> None:
    where = f"edit {fields.shown(name)}"
    if (edit.to is None) == (edit.op == "set_coordinate"):
        raise GraphError(f'{where}: "to" belongs to set_coordinate, and to nothing else')
    if edit.op in ("remove", "set_coordinate") and not isinstance(edit.value, Constant):
        raise GraphError(f'{where}: "value" is no constant; {edit.op} takes a fixed direction')
