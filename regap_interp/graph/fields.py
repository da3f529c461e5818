"""The vocabulary of a written graph: every op with its fields, to JSON and strictly back."""

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, get_args

import torch
from torch import Tensor

from regap_interp.directions import Origin
from regap_interp.graph.edits import Op as EditOp
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import (
    ARITHMETIC,
    COMPARISONS,
    MODALITIES,
    SPANS,
    Arithmetic,
    At,
    Compare,
    Constant,
    IsModality,
    Lens,
    Logic,
    Mean,
    Node,
    Number,
    Phase,
    Project,
    Read,
    Select,
    Steps,
    Unit,
)

_BINARY = {"left": "node", "right": "node"}
OPS: dict[str, tuple[type[Node], str, dict[str, str]]] = {
    "read": (
        Read,
        "read",
        {
            "site": "text",
            "layer": "integer or null",
            "at": "positions",
            "under": "edits or null",
            "phase": "phase of a read",
            "head": "integer or null",
        },
    ),
    "constant": (Constant, "constant", {"value": "tensor", "origin": "origin or null"}),
    "number": (Number, "number", {"value": "number"}),
    "mean": (Mean, "mean", {"of": "node"}),
    "project": (
        Project,
        "project",
        {"of": "node", "vector": "constant", "centre": "constant or null", "unit": "unit"},
    ),
    "lens": (Lens, "lens", {"of": "node", "tokens": "integers or null"}),
    "select": (Select, "select", {"gate": "node", "then": "node", "otherwise": "node"}),
    "modality": (IsModality, "modality", {"modality": "modality"}),
    **{op: (Arithmetic, "value", _BINARY) for op in ARITHMETIC},
    **{op: (Compare, "gate", _BINARY) for op in COMPARISONS},
    **{op: (Logic, "gate", {"of": "nodes"}) for op in ("and", "or", "not")},
}
"""Of every op of a node: its class, what its ids begin with, and the kinds of its fields."""
EDIT_OPS: tuple[str, ...] = get_args(EditOp)
EDIT_FIELDS = {
    "site": "text",
    "layer": "integer or null",
    "value": "node",
    "strength": "node",
    "at": "positions",
    "phase": "phase",
    "to": "node or null",
    "centre": "constant or null",
    "head": "integer or null",
    "keep_norm": "true or false",
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "phase": get_args(Phase),
    "phase of a read": ("prefill", "decode"),
    "unit": get_args(Unit),
    "modality": MODALITIES,
}
REFERENCES = ("node", "nodes", "constant", "edits")
"""Kinds of fields that hold ids."""
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of an origin: written only where it is recorded.
_MAYBE = ("position", "edits")
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def op_of(node: Node) -> str:
    """The op under which a node is written.

    Raises:
        GraphError: The node's class is none of this library's.
    """
    own = getattr(node, "op", None)
    for op, (kind, _, _) in OPS.items():
        if type(node) is kind and own in (None, op):
            return op
    raise GraphError(
        f"a node of class {type(node).__name__}{'' if own is None else f' with op {own!r}'} cannot "
        f"be written; a written graph has only the ops {', '.join(OPS)}"
    )


def write(kind: str, value: Any) -> Any:
    """A field that holds no id, as JSON."""
    match value:
        case Steps():
            return {"start": value.start, "stop": value.stop}
        case Origin():
            written = {"model": value.model, "site": value.site, "layer": value.layer}
            known = {name: getattr(value, name) for name in _MAYBE}
            return written | {name: one for name, one in known.items() if one is not None}
        case tuple():
            return [operator.index(one) for one in value]
    if kind.startswith("integer"):
        return operator.index(value)  # a number of numpy, say, becomes a plain one
    if kind == "number" and not math.isfinite(value):
        if math.isnan(value):
            raise GraphError("a number is NaN; gates on it never open, so it is refused")
        return "inf" if value > 0 else "-inf"
    return value


def read(where: str, kind: str, value: Any) -> Any:
    """The field that `write` wrote.

    Args:
        where: Names node and field in errors.
        kind: One of the kinds in `OPS` and `EDIT_FIELDS`.
        value: What the file holds.

    Raises:
        GraphError: It is of another kind.
    """
    inner, _, absent = kind.partition(" or ")
    if absent == "null" and value is None:
        return None
    if kind in _CHOICES:
        if value not in _CHOICES[kind]:
            _refuse(where, value, f"one of {', '.join(_CHOICES[kind])}")
        return value
    match inner:
        case "text" if isinstance(value, str):
            return value
        case "true" if isinstance(value, bool):
            return value
        case "integer" if is_integer(value):
            return value
        case "integers" if isinstance(value, list) and all(map(is_integer, value)):
            return tuple(value)
        case "number":
            return _number(where, value)
        case "positions":
            return _positions(where, value)
        case "origin":
            return _origin(where, value)
    _refuse(where, value, kind)


def exact_keys(where: str, value: Any, names: Collection[str]) -> dict[str, Any]:
    """`value` as an object with just these fields.

    Raises:
        GraphError: It is no object, or a field is missing or unknown.
    """
    if not isinstance(value, dict):
        _refuse(where, value, "an object")
    for name in names:
        if name not in value:
            raise GraphError(f'{where} has no "{name}"; its fields are {", ".join(names)}')
    for name in value:
        if name not in names:
            raise GraphError(
                f"{where} has a field {shown(name)} that is unknown; its fields are "
                f"{', '.join(names)}"
            )
    return value


def tensor(where: str, value: Any, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The name of a tensor, and the tensor, checked against what is written of it.

    Raises:
        GraphError: It is missing, of another type or shape, or not finite.
    """
    fields = exact_keys(where, value, ("tensor", "dtype", "shape"))
    name = read(f'{where}, "tensor"', "text", fields["tensor"])
    found = tensors.get(name)
    if found is None:
        raise GraphError(f"{where}: there is no tensor {shown(name)} beside the graph")
    for what, is_so in describe(found).items():
        if fields[what] != is_so:
            raise GraphError(
                f"{where}: tensor {shown(name)} has {what} {is_so}, the graph says "
                f"{shown(fields[what])}; they are not of one file"
            )
    check_tensor(where, found)
    return name, found


def check_tensor(where: str, value: Tensor) -> None:
    """Refuse a tensor no graph can compute with.

    Raises:
        GraphError: It is not of a floating type, or not finite.
    """
    if value.dtype not in _FLOATS:
        names = ", ".join(str(one).removeprefix("torch.") for one in _FLOATS)
        raise GraphError(f"{where}: a tensor of {value.dtype}; expected one of {names}")
    if not value.isfinite().all():
        raise GraphError(f"{where}: the tensor is not finite; check the pass it was made from")


def describe(value: Tensor) -> dict[str, Any]:
    """What is written of a tensor beside its name."""
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}


def is_integer(value: object) -> bool:
    """Whether it is a whole number, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value in an error, shortened."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(where: str, value: Any) -> float:
    if isinstance(value, str) and value in _INFINITE:
        return _INFINITE[value]
    if is_integer(value) or isinstance(value, float):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
    _refuse(where, value, 'a finite number, "inf" or "-inf"')


def _positions(where: str, value: Any) -> At:
    if isinstance(value, str) and value in SPANS:
        return value
    if isinstance(value, list) and value and all(map(is_integer, value)):
        return tuple(value)
    if isinstance(value, dict):
        fields = exact_keys(where, value, ("start", "stop"))
        start = read(f'{where}, "start"', "integer", fields["start"])
        return Steps(start, read(f'{where}, "stop"', "integer or null", fields["stop"]))
    _refuse(where, value, f"{', '.join(SPANS)}, a list of indices, or steps of decoding")


def _origin(where: str, value: Any) -> Origin:
    known = [name for name in _MAYBE if isinstance(value, dict) and name in value]
    fields = exact_keys(where, value, ("model", "site", "layer", *known))
    return Origin(
        read(f'{where}, "model"', "text", fields["model"]),
        read(f'{where}, "site"', "text", fields["site"]),
        read(f'{where}, "layer"', "integer or null", fields["layer"]),
        *(read(f'{where}, "{name}"', "text or null", fields.get(name)) for name in _MAYBE),
    )


def _refuse(where: str, value: object, expected: str) -> NoReturn:
    raise GraphError(f"{where} is {shown(value)}; expected {expected}")
